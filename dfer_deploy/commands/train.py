"""``dfer-deploy train``"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from dfer_deploy.commands.options import json_option
from dfer_deploy.console import stdout, table
from dfer_deploy.files import write_json


@click.command()
@click.argument("recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the checkpoints.")
@click.option("--data", "data", type=click.Path(path_type=Path), help="Folder of the annotation lists.")
@click.option("--seed", type=int, help="Replaces the recipe's seed.")
@click.option("--epochs", type=int, help="Replaces the recipe's number of epochs.")
@json_option
def train(
    recipe: str, output: Path, data: Path | None, seed: int | None, epochs: int | None, json_file: Path | None
) -> None:
    """Train a model by RECIPE, a TOML file or the name of a built-in one (synthetic)."""
    from dfer_deploy.train.loop import train as run_training
    from dfer_deploy.train.recipe import recipe_from_toml

    settings = recipe_from_toml(recipe)
    if data is not None:
        settings = replace(settings, data=replace(settings.data, root=str(data)))
    if seed is not None:
        settings = replace(settings, run=replace(settings.run, seed=seed))
    if epochs is not None:
        settings = replace(settings, optim=settings.optim.with_epochs(epochs))
    result = run_training(settings, output)
    score = result.score
    recalls = dict(zip(result.class_names, score.recalls, strict=True))
    table(
        f"{result.test_clips} test clips, epoch {result.epoch}",
        ("what", "value"),
        [
            ("UAR", f"{score.uar:.2f} %"),
            ("WAR", f"{score.war:.2f} %"),
            *((f"recall {name}", "no clip" if value is None else f"{value:.1f} %") for name, value in recalls.items()),
            ("seconds", f"{result.seconds:.0f}"),
            ("checkpoint", result.checkpoint),
        ],
    )
    if result.selected_on == "test":
        stdout.print("The epoch was chosen by this very test list, as in the paper: the numbers are optimistic.")
    stdout.print("next:")
    stdout.print(f"  dfer-deploy export {result.checkpoint}", markup=False)
    if json_file:
        write_json(
            json_file,
            {
                "checkpoint": str(result.checkpoint),
                "uar": score.uar,
                "war": score.war,
                "recalls": recalls,
                "confusion": score.confusion.tolist(),
                "epoch": result.epoch,
                "selected_on": result.selected_on,
                "test_clips": result.test_clips,
                "seconds": result.seconds,
                "losses": list(result.losses),
                "seed": settings.run.seed,
            },
        )
