"""``dfer-deploy synthetic``"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from dfer_deploy.console import stdout
from dfer_deploy.files import atomic_file
from dfer_deploy.train.drawn_layouts import FOLDS, LAYOUTS, Layout
from dfer_deploy.train.synthetic import NOTE, SyntheticSpec, contact_sheet, write_synthetic_dataset

_DEFAULTS = SyntheticSpec()


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option(
    "--clips-per-class", type=int, default=_DEFAULTS.clips_per_class_train, show_default=True, help="For training."
)
@click.option(
    "--test-clips-per-class", type=int, default=_DEFAULTS.clips_per_class_test, show_default=True, help="For the test."
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default=_DEFAULTS.layout,
    show_default=True,
    help="In whose files: the reference implementation's lists, or a real data set's (dfew and mafw in five folds).",
)
@click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Determines every pixel.")
@click.option("--workers", type=int, help="Number of processes.  [default: one for each core]")
def synthetic(
    root: Path, clips_per_class: int, test_clips_per_class: int, layout: Layout, seed: int, workers: int | None
) -> None:
    """Draw a data set of animated faces into the new folder ROOT: frames, and lists of training and test clips."""
    spec = SyntheticSpec(
        clips_per_class_train=clips_per_class, clips_per_class_test=test_clips_per_class, seed=seed, layout=layout
    )
    write_synthetic_dataset(root, spec, workers)
    sheet = root / "contact_sheet.png"
    with atomic_file(sheet) as temporary:
        contact_sheet(root).save(temporary, format="PNG")
    stdout.print(
        f"{root} holds {7 * clips_per_class} training and {7 * test_clips_per_class} test clips "
        f"({sheet.name} shows some)" + (f", together in {FOLDS} folds." if layout in ("dfew", "mafw") else "."),
        markup=False,
    )
    stdout.print(NOTE)
    stdout.print("next:")
    recipe = "synthetic" if layout == "lists" else layout
    stdout.print(f"  dfer-deploy train {recipe} --data {shlex.quote(str(root))} -o RUN", markup=False)
