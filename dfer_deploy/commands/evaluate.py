"""``dfer-deploy evaluate``"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from dfer_deploy.commands.options import class_names_option, data_root_option, json_option, prompt_position_option
from dfer_deploy.console import stdout, table, warn
from dfer_deploy.errors import WriteError
from dfer_deploy.files import atomic_file, refuse_to_replace_input, write_json
from dfer_deploy.metrics import CALIBRATION_BINS
from dfer_deploy.specs import PromptPosition

if TYPE_CHECKING:
    from dfer_deploy.api.evaluate_checkpoint import EvaluationResult
    from dfer_deploy.verification.verification_result import ScoredAnswers


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
    from dfer_deploy.api.evaluate_checkpoint import evaluate_checkpoint

    if json_file:
        refuse_to_replace_input(json_file, [checkpoint, data])
    if output is not None:
        _make_folder(output)
    result = evaluate_checkpoint(
        checkpoint,
        data,
        data_root=data_root,
        batch_size=batch_size,
        prompt_position=prompt_position,
        class_names=class_names,
    )
    _print_result(result)
    if output is not None:
        title = f"{result.clips} clips, UAR {result.score.uar:.2f} %, WAR {result.score.war:.2f} %"
        _write_confusion(
            output, result.score, title + (" (chosen on a test list: optimistic)" * bool(result.optimistic))
        )
        stdout.print(f"wrote {output / 'confusion.csv'} and {output / 'confusion.png'}", markup=False)
    if json_file:
        write_json(json_file, result.to_dict())


def _print_result(result: EvaluationResult) -> None:
    score = result.score
    recalls = score.recalls.items()
    rows: list[tuple[object, ...]] = [
        ("UAR", f"{score.uar:.2f} %"),
        ("WAR", f"{score.war:.2f} %"),
        (f"calibration error ({CALIBRATION_BINS} bins)", f"{score.calibration_error:.2f} %"),
        *((f"recall {name}", "no clip" if value is None else f"{value:.1f} %") for name, value in recalls),
        ("unreadable clips", len(result.unreadable)),
        ("epoch chosen by", (result.selected_on or "not stated") + (" (optimistic)" if result.optimistic else "")),
    ]
    table(f"{result.checkpoint} on {result.clips} of {result.listed} clips", ("what", "value"), rows)
    if score.absent:
        warn(f"no clip of {', '.join(score.absent)}: the UAR is the mean over the other classes")
    if result.optimistic:
        warn("the checkpoint's epoch was chosen on its test list: on clips of that list these numbers are optimistic")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {folder} ({error.strerror}); choose another -o") from error


def _write_confusion(folder: Path, score: ScoredAnswers, title: str) -> None:
    """Write the confusion matrix as CSV (rows are labels, columns are predictions) and as a picture."""
    from dfer_deploy.drawing.pictures import write_confusion_picture

    names, confusion = tuple(score.recalls), np.array(score.confusion)
    with atomic_file(folder / "confusion.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["labelled \\ predicted", *names])
        writer.writerows([name, *map(int, row)] for name, row in zip(names, score.confusion, strict=True))
    write_confusion_picture(folder / "confusion.png", confusion, names, title)
