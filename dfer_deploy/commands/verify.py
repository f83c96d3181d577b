"""``dfer-deploy verify``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfer_deploy.api.verify_bundle import verify_bundle
from dfer_deploy.api.verify_options import VerifyOptions, labelled_clips
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.commands.options import (
    bundle_argument,
    data_root_option,
    host_code_option,
    json_option,
    runtime_option,
)
from dfer_deploy.commands.verification import print_bisection, print_verification
from dfer_deploy.console import stdout
from dfer_deploy.files import check_outputs, write_json
from dfer_deploy.verification.bounds import MAX_LOGIT_ERROR, MAX_POINTS


@click.command()
@bundle_argument
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Compare with this checkpoint in PyTorch.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Compare with answers that PyTorch gave elsewhere.")
@click.option("--save-baseline", type=click.Path(path_type=Path), help="Save PyTorch's answers for --baseline.")
@click.option(
    "--data",
    "lists",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Annotation list with labelled clips; repeatable.",
)
@data_root_option
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="Verify this server (grpc://… or http://…) instead of starting one; once for each protocol.",
)
@click.option("--in-process", is_flag=True, help="Ask no server: only what runs in this process.")
@runtime_option
@host_code_option
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Clips in one request.")
@click.option(
    "--max-logit-error",
    type=click.FloatRange(0, MAX_LOGIT_ERROR),
    help="Instead of the precision's limit (fp32 0.01, fp16 2.5).",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, MAX_POINTS, min_open=True),
    help="Points by which UAR and WAR may differ, fixed before you look.  [default: 0.5]",
)
@click.option(
    "--group-by",
    metavar="REGEX",
    help="What the first group matches in a clip's listed path is its source (a film, a person); clips of one source "
    "do not count as independent.",
)
@click.option(
    "--pool",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Decide about the clips of this earlier --json FILE too, for example of another fold; repeatable.",
)
@click.option("--policy", type=click.Path(path_type=Path), help="Take the limits from [verify] of this TOML file.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write an HTML page that shows everything.",
)
@click.option(
    "--own-test-list/--other-list",
    default=None,
    help="Whether LIST is the one on which a reference checkpoint's best_acc was measured; by default this is taken "
    "to be so if best_acc is a whole number of hits out of its clips.",
)
@click.option(
    "--bisect",
    is_flag=True,
    help="Find out which blocks must stay fp32 in an fp16 export for these limits to hold, and print its command.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    bundle: Path,
    lists: tuple[Path, ...],
    data_root: str | None,
    report_file: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Prove on labelled clips that BUNDLE answers like its checkpoint, in process and served.

    In process are onnxruntime, with CUDA if available, and the TensorRT engines if they are built and run here. The
    server is asked over gRPC and over HTTP, and about the first clips also as streams and as encoded images. The exit
    code is 0 if all answers agree and UAR and WAR are equivalent, 1 if something failed, and 3 if nothing failed but
    there are too few clips to decide.
    """
    asked = VerifyOptions(**options)
    if report_file:
        # Checked before minutes of work: a required package may be missing.
        from dfer_deploy.report.page import write_report
    opened = open_bundle(bundle)
    clips = labelled_clips(opened, lists, data_root)
    paths = {annotation.name: annotation.path for annotation in clips.annotations}
    saved = Path(asked.save_baseline) if asked.save_baseline else None
    outputs = {"--json": json_file, "--report": report_file, "--save-baseline": saved}
    check_outputs(outputs, [*asked.files, *lists, *paths.values()], bundle)
    result = verify_bundle(opened, clips, asked, compared=lambda found: print_verification(found, bundle))
    if result.bisection is not None:
        print_bisection(result.bisection)
    if asked.save_baseline:
        stdout.print(f"saved PyTorch's answers to {asked.save_baseline}", markup=False)
    if json_file:
        write_json(json_file, result.to_dict())
    if report_file:
        write_report(report_file, result, clips=paths)
    ctx.exit(int(result.exit_code))
