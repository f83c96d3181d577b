"""``dfer-deploy report``"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from dfer_deploy.clips.annotations import read_annotations
from dfer_deploy.commands.options import data_root_option
from dfer_deploy.console import stdout
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import check_outputs

MAX_JSON_BYTES = 256 << 20


@click.command()
@click.argument("verification", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The HTML file.")
@click.option("--bench", type=click.Path(path_type=Path), help="Also show what bench --json wrote.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="The list that was verified, to show frames of its clips."
)
@data_root_option
def report(verification: Path, output: Path, bench: Path | None, data: Path | None, data_root: str | None) -> None:
    """Show what verify --json wrote as one HTML file that needs no network."""
    from dfer_deploy.report.page import write_report

    if data_root and not data:
        raise click.UsageError("--data-root says where the clips of a list are; add --data LIST")
    check_outputs({"--output": output}, [verification, bench, data])
    content = read_json(verification, "verify")
    measured = read_json(bench, "bench") if bench else None
    clips: dict[str, Path] = {}
    if data:
        names = content.get("class_names")
        annotations = read_annotations(data, len(names) if isinstance(names, list) else 0, data_root)
        clips = {annotation.name: annotation.path for annotation in annotations}
    try:
        write_report(output, content, bench=measured, clips=clips)
    except DferDeployError as error:
        raise DferDeployError(f"{verification}{f' and {bench}' if bench else ''}: {error}") from error
    stdout.print(f"wrote {output}", markup=False)


def read_json(path: Path, command: str) -> dict[str, Any]:
    """Reads a file that ``--json`` wrote.

    Raises:
        DferDeployError: it cannot be read, or is none.
    """
    again = f"make it with: dfer-deploy {command} … --json {path}"
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DferDeployError(f"{path} has over {MAX_JSON_BYTES} bytes; {again}")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise DferDeployError(f"{path} cannot be read ({error.strerror}); {again}") from error
    except (ValueError, RecursionError) as error:
        raise DferDeployError(f"{path} is not valid JSON ({error}); {again}") from error
    if not isinstance(values, dict):
        raise DferDeployError(f"{path} holds no table but {str(values)[:80]!r}; {again}")
    return values


def _finite(text: str) -> float:
    """Also of ``NaN`` and ``Infinity``, which JSON does not have, and of ``1e999``, which no float holds."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no number")
    return value
