"""``dfer-deploy evaluate``"""

from __future__ import annotations

import csv
from pathlib import Path

import click

from dfer_deploy.commands.options import class_names_option, data_root_option, json_option, prompt_position_option
from dfer_deploy.console import stdout, step, table, warn
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import atomic_file, refuse_to_replace_input, sha256_of_file, write_json
from dfer_deploy.metrics import CALIBRATION_BINS, Score, calibration, softmax
from dfer_deploy.specs import PromptPosition


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Annotation list with labelled clips.")
@data_root_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the confusion matrix, csv and png.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Clips in one pass.")
@prompt_position_option
@class_names_option
@json_option
def evaluate(
    checkpoint: Path,
    data: Path,
    data_root: str | None,
    output: Path | None,
    batch_size: int,
    prompt_position: PromptPosition | None,
    class_names: tuple[str, ...] | None,
    json_file: Path | None,
) -> None:
    """Score CHECKPOINT on labelled clips: UAR, WAR, recall of every class, confusion matrix, calibration error."""
    import torch

    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.clips.dataset import LabelledClips
    from dfer_deploy.console import progress
    from dfer_deploy.train.evaluation import evaluate as run_evaluation
    from dfer_deploy.train.result import SELECTIONS

    if json_file:
        refuse_to_replace_input(json_file, [checkpoint, data])
    with step(f"read {checkpoint}"):
        loaded = load_checkpoint(checkpoint, prompt_position=prompt_position, class_names=class_names)
        model = loaded.build_model().to("cuda" if torch.cuda.is_available() else "cpu")
    names = loaded.spec.prompts.class_names
    selected_on = loaded.provenance.get("selected_on")
    if not isinstance(selected_on, str) or selected_on not in SELECTIONS:
        selected_on = None
    optimistic = None if selected_on is None else selected_on == "test"
    clips = LabelledClips.from_list(data, len(names), loaded.spec.clip.vision.image_size, data_root)
    if output is not None:
        _make_folder(output)
    evaluation = run_evaluation(model, progress(clips, "evaluating", len(clips)), batch_size)
    clips.warn_about_unreadable()
    clips.require_readable()
    score = evaluation.score(names)
    found_calibration = calibration(evaluation.labels, softmax(evaluation.logits))
    recalls = dict(zip(names, score.recalls, strict=True))
    rows: list[tuple[object, ...]] = [
        ("UAR", f"{score.uar:.2f} %"),
        ("WAR", f"{score.war:.2f} %"),
        (f"calibration error ({CALIBRATION_BINS} bins)", f"{found_calibration.error:.2f} %"),
        *((f"recall {name}", "no clip" if value is None else f"{value:.1f} %") for name, value in recalls.items()),
        ("unreadable clips", len(clips.unreadable)),
        ("epoch chosen by", (selected_on or "not stated") + (" (optimistic)" if optimistic else "")),
    ]
    table(f"{checkpoint} on {len(evaluation.labels)} of {len(clips)} clips", ("what", "value"), rows)
    if score.absent:
        warn(f"no clip of {', '.join(score.absent)}: the UAR is the mean over the other classes")
    if optimistic:
        warn("the checkpoint's epoch was chosen on its test list: on clips of that list these numbers are optimistic")
    if output is not None:
        title = f"{len(evaluation.labels)} clips, UAR {score.uar:.2f} %, WAR {score.war:.2f} %"
        _write_confusion(output, score, names, title + (" (chosen on a test list: optimistic)" * bool(optimistic)))
        stdout.print(f"wrote {output / 'confusion.csv'} and {output / 'confusion.png'}", markup=False)
    if json_file:
        write_json(
            json_file,
            {
                "checkpoint": str(checkpoint),
                "checkpoint_sha256": sha256_of_file(checkpoint),
                "data": str(data),
                "clips": len(evaluation.labels),
                "uar": score.uar,
                "war": score.war,
                "calibration_error": found_calibration.error,
                "recalls": recalls,
                "confusion": score.confusion.tolist(),
                "selected_on": selected_on,
                "optimistic": optimistic,
                "unreadable": dict(clips.unreadable),
            },
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DferDeployError(f"cannot make the folder {folder} ({error.strerror}); choose another -o") from error


def _write_confusion(folder: Path, score: Score, names: tuple[str, ...], title: str) -> None:
    """Counts as csv (rows are labels, columns predictions) and the picture of them."""
    from dfer_deploy.drawing.pictures import write_confusion_picture

    with atomic_file(folder / "confusion.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["labelled \\ predicted", *names])
        writer.writerows([name, *map(int, row)] for name, row in zip(names, score.confusion, strict=True))
    write_confusion_picture(folder / "confusion.png", score.confusion, names, title)
