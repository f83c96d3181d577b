"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from dfer_deploy.api.contestants import TRITON
from dfer_deploy.clips.faces import DEFAULT_MARGIN, MAX_MARGIN
from dfer_deploy.clips.timed import MAX_INTERVAL_S, MIN_INTERVAL_S
from dfer_deploy.runtimes.available import RUNTIMES
from dfer_deploy.specs import PROMPT_POSITIONS


def names_of(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list of names (a callback for click)."""
    return tuple(name.strip() for name in value.split(",")) if value else None


json_option = click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the result to this file."
)

prompt_position_option = click.option(
    "--prompt-position",
    type=click.Choice(PROMPT_POSITIONS),
    help="Where the learned contexts stand, which a reference checkpoint does not say.  [default: end]",
)

class_names_option = click.option(
    "--class-names",
    callback=names_of,
    metavar="A,B,…",
    help="Class names in the order of the logits, which a reference checkpoint does not say.",
)

data_root_option = click.option(
    "--data-root",
    metavar="FOLDER|OLD=NEW",
    help="Where the listed clips are on this machine: a folder, or which prefix of the listed paths becomes which.",
)

frame_interval_option = click.option(
    "--frame-interval-s",
    type=click.FloatRange(MIN_INTERVAL_S, MAX_INTERVAL_S),
    help="Seconds between two frames of a window.  [default: as in training where that is known, else 1/6]",
)

margin_option = click.option(
    "--margin",
    type=click.FloatRange(0.0, MAX_MARGIN),
    default=DEFAULT_MARGIN,
    show_default=True,
    help="Around each face, as a share of it.",
)

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))

runtime_option = click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice([*RUNTIMES, TRITON]),
    help="Compare this one; repeatable.  [default: all that the bundle and this machine allow]",
)

host_code_option = click.option(
    "--allow-host-code",
    is_flag=True,
    help="Let TensorRT execute the code that version-compatible engines carry; only for engines that you built.",
)
