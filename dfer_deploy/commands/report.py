"""``dfer-deploy report``"""

from __future__ import annotations

from pathlib import Path

import click

from dfer_deploy.clips.annotations import read_annotations
from dfer_deploy.commands.options import data_root_option
from dfer_deploy.console import stdout
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import check_outputs, read_json
from dfer_deploy.measurement.bench_result import BenchResult
from dfer_deploy.verification.verification_result import VerificationResult


@click.command()
@click.argument("verification", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The HTML file.")
@click.option("--bench", type=click.Path(path_type=Path), help="Also show what bench --json wrote.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="The list that was verified, to show frames of its clips."
)
@data_root_option
def report(verification: Path, output: Path, bench: Path | None, data: Path | None, data_root: str | None) -> None:
    """Show the JSON of verify as one HTML file that needs no network."""
    from dfer_deploy.report.page import write_report

    if data_root and not data:
        raise click.UsageError("--data-root says where the clips of a list are; add --data LIST")
    check_outputs({"--output": output}, [verification, bench, data])
    clips: dict[str, Path] = {}
    values = read_json(verification, "verify")
    of_bench = read_json(bench, "bench") if bench else None
    try:
        result = VerificationResult.from_dict(values)
        measured = None if of_bench is None else BenchResult.from_dict(of_bench)
        if data:
            annotations = read_annotations(data, len(result.class_names), data_root)
            clips = {annotation.name: annotation.path for annotation in annotations}
        write_report(output, result, bench=measured, clips=clips)
    except DferDeployError as error:
        raise type(error)(f"{verification}{f' and {bench}' if bench else ''}: {error}") from error
    stdout.print(f"wrote {output}", markup=False)
