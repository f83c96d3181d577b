"""``dfer-deploy train``"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfer_deploy.commands.options import json_option
from dfer_deploy.console import stdout, table
from dfer_deploy.files import write_json

if TYPE_CHECKING:
    from dfer_deploy.train.recipe import Recipe
    from dfer_deploy.train.result import TrainingResult
    from dfer_deploy.train.runs import RunSummary

_SUMMARY = "summary.json"
"""The file with the means over folds and seeds, in the output folder."""


@click.command()
@click.argument("recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the run; an interrupted one goes on.")
@click.option(
    "--data", "data", type=click.Path(path_type=Path), help="Folder of the lists, or of the data set as distributed."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replaces a setting of the recipe, such as optim.lr_temporal=1e-3. Can be repeated.",
)
@click.option("--seed", type=int, help="Replaces the recipe's seed.")
@click.option("--epochs", type=int, help="Replaces the number of epochs; schedule and warm-up keep their shares.")
@click.option("--folds", metavar="all|1,3,…", help="Train these folds, each into OUTPUT/fold_K/seed_S.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    metavar="N",
    help="Train with so many seeds, from the recipe's or --seed upwards.",
)
@click.option(
    "--fresh", is_flag=True, help="Remove what an earlier run left in the folder instead of going on with it."
)
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PNG",
    help="Only draw a contact sheet of augmented training clips.",
)
@json_option
def train(
    recipe: str,
    output: Path | None,
    data: Path | None,
    overrides: tuple[str, ...],
    seed: int | None,
    epochs: int | None,
    folds: str | None,
    seeds: int | None,
    fresh: bool,
    preview: Path | None,
    json_file: Path | None,
) -> None:
    """Train a model by RECIPE, a TOML file or the name of a built-in one (dfew, ferv39k, mafw, synthetic).

    The same command continues an interrupted training and leaves finished runs unchanged. On several GPUs:
    torchrun --nproc-per-node 4 -m dfer_deploy train RECIPE -o OUTPUT
    """
    from dfer_deploy.train.recipe import recipe_from_toml

    if preview is not None and (folds is not None or seeds is not None or fresh or json_file is not None):
        raise click.UsageError("--preview only draws; omit --folds, --seeds, --fresh and --json")
    settings = recipe_from_toml(recipe, overrides)
    if data is not None:
        settings = replace(settings, data=replace(settings.data, root=str(data)))
    if seed is not None:
        settings = replace(settings, run=replace(settings.run, seed=seed))
    if epochs is not None:
        settings = replace(settings, optim=settings.optim.with_epochs(epochs))
    if preview is not None:
        if preview.suffix.lower() != ".png":
            raise click.UsageError(f"--preview writes a picture, so {preview} must end in .png")
        from dfer_deploy.train.preview import write_preview

        write_preview(settings, preview)
        stdout.print(f"{preview} shows training clips as the model sees them", markup=False)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    _train(settings, output, folds, seeds, fresh, json_file)


def _train(
    settings: Recipe, output: Path, folds: str | None, seeds: int | None, fresh: bool, json_file: Path | None
) -> None:
    from dfer_deploy.train.distributed import training_processes
    from dfer_deploy.train.loop import train as run_training
    from dfer_deploy.train.runs import folds_from_text, train_all
    from dfer_deploy.train.test_list import require_another_list, write_test_list

    with training_processes(settings.run.device) as processes:
        if folds is None and seeds is None:
            require_another_list(settings, output)
            result = run_training(settings, output, fresh=fresh)
            values = {**result.to_dict(), "seed": settings.run.seed}
        else:
            first, data = settings.run.seed, settings.data
            chosen = [data.fold] if folds is None else folds_from_text(folds, data.folds)
            of_fold = {fold: replace(settings, data=replace(data, fold=fold)) for fold in chosen}
            for fold, one in of_fold.items():
                require_another_list(one, output / f"fold_{fold}")
            summary = train_all(settings, output, chosen, range(first, first + (seeds or 1)), fresh=fresh)
            values = summary.to_dict()
        if not processes.is_first:
            return
        if folds is None and seeds is None:
            _print_run(result)
        else:
            _print_runs(summary)
            write_json(output / _SUMMARY, values)
        if json_file:
            write_json(json_file, values)
        if folds is None and seeds is None:
            _print_next(settings, result.checkpoint, write_test_list(settings, output))
        else:
            lists = [write_test_list(one, output / f"fold_{fold}") for fold, one in of_fold.items()]
            _print_next(settings, summary.results[chosen[0], first].checkpoint, lists[0])


def _print_run(result: TrainingResult) -> None:
    score = result.score
    table(
        f"{result.test_clips} test clips, epoch {result.epoch}",
        ("what", "value"),
        [
            ("UAR", f"{score.uar:.2f} %"),
            ("WAR", f"{score.war:.2f} %"),
            *(
                (f"recall {name}", "no clip" if value is None else f"{value:.1f} %")
                for name, value in zip(result.class_names, score.recalls, strict=True)
            ),
            ("epoch chosen by", result.selected_on + (" (optimistic)" if result.is_optimistic else "")),
            ("seconds", f"{result.seconds:.0f}"),
            ("checkpoint", result.checkpoint),
        ],
    )
    _print_selection(result.selected_on)


def _print_runs(summary: RunSummary) -> None:
    measures = ("uar", "war")
    rows: list[tuple[object, ...]] = [
        (fold, seed, f"{result.score.uar:.2f}", f"{result.score.war:.2f}", result.epoch, result.checkpoint)
        for (fold, seed), result in sorted(summary.results.items())
    ]
    rows.append(("mean", "", *(f"{summary.mean(measure):.2f}" for measure in measures), "", ""))
    for what, deviation in (("± over folds", summary.over_folds), ("± over seeds", summary.over_seeds)):
        values = [deviation(measure) for measure in measures]
        if None not in values:
            rows.append((what, "", *(f"{value:.2f}" for value in values), "", ""))
    selected_on = next(iter(summary.results.values())).selected_on
    title = f"{len(summary.results)} runs: folds {_listed(summary.folds)}; seeds {_listed(summary.seeds)}"
    title += " (optimistic: the test lists chose the epochs)" if selected_on == "test" else ""
    table(title, ("fold", "seed", "UAR %", "WAR %", "epoch", "checkpoint"), rows)
    stdout.print(
        "± is the sample standard deviation: of the folds' means over the seeds, of the seeds' over the folds."
    )
    _print_selection(selected_on)


def _print_selection(selected_on: str) -> None:
    from dfer_deploy.train.result import SELECTIONS

    stdout.print(f"The checkpoint is of {SELECTIONS[selected_on]}.")


def _print_next(settings: Recipe, checkpoint: Path, test_list: Path) -> None:
    """Print what can be done with the checkpoint. Co-CoOp's texts depend on the clip, so it cannot be exported."""
    typed, tests = shlex.quote(str(checkpoint)), shlex.quote(str(test_list))
    stdout.print("next:")
    lines = [f"evaluate {typed} --data {tests}"]
    if settings.model.strategy != "cocoop":
        lines += [f"export {typed}", f"verify {checkpoint.stem}.bundle --checkpoint {typed} --data {tests}"]
    for line in lines:
        stdout.print(f"  dfer-deploy {line}", markup=False)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
