"""``dfer-deploy export``"""

from __future__ import annotations

import typing
from pathlib import Path

import click

from dfer_deploy.bundle import TARGETS, Target
from dfer_deploy.commands.options import class_names_option, json_option, prompt_position_option
from dfer_deploy.console import stdout, table
from dfer_deploy.files import write_json
from dfer_deploy.specs import Precision, PromptPosition


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The bundle's folder.  [default: CHECKPOINT's name]"
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default="embedded",
    show_default=True,
    help="embedded: the Triton that pip installs, for this machine. onnxruntime: NVIDIA's container.",
)
@click.option("--precision", type=click.Choice(typing.get_args(Precision)), default="fp32", show_default=True)
@prompt_position_option
@class_names_option
@click.option("--name", default="dfer", show_default=True, help="Prefix of the Triton model names.")
@click.option("--max-batch-size", type=int, default=16, show_default=True, help="Clips in one execution.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--add-version", is_flag=True, help="Add to an existing bundle as its next version, for rollback.")
@json_option
def export(
    checkpoint: Path,
    output: Path | None,
    target: Target,
    precision: Precision,
    prompt_position: PromptPosition | None,
    class_names: tuple[str, ...] | None,
    name: str,
    max_batch_size: int,
    force: bool,
    add_version: bool,
    json_file: Path | None,
) -> None:
    """Turn CHECKPOINT into a bundle: two checked ONNX graphs, a Triton model repository and a manifest."""
    from dfer_deploy.export.pipeline import ExportOptions, export_bundle

    if force and add_version:
        raise click.UsageError("--force replaces a bundle and --add-version extends it; choose one")
    output = output or Path(f"{checkpoint.stem}.bundle")
    options = ExportOptions(target, precision, name, max_batch_size, prompt_position, class_names)
    bundle, written = export_bundle(checkpoint, output, options, force=force, add_version=add_version)
    if not written:
        stdout.print(f"{output} is up to date: same checkpoint, options and tools; nothing was done", markup=False)
    manifest = bundle.manifest
    parity = manifest.parity
    sizes = {path: path.stat().st_size / 1e6 for path in (bundle.image_encoder_onnx, bundle.temporal_head_onnx)}
    errors = (f"{parity['relative_feature_error']:g} of a feature", f"{parity['head_logit_error']:g} logit")
    rows: list[tuple[str, ...]] = [
        (str(path.relative_to(output)), manifest.precision, f"{size:.1f} MB", f"≤ {error}")
        for (path, size), error in zip(sizes.items(), errors, strict=True)
    ]
    rows.append(("both together", "", f"{sum(sizes.values()):.1f} MB", f"≤ {parity['logit_error']:g} logit"))
    table(str(output), ("graph", "precision", "size", "largest error against PyTorch on drawn frames"), rows)
    stdout.print("next:")
    if target == "embedded":
        stdout.print(f"  dfer-deploy serve {output}", markup=False)
    stdout.print(f"  dfer-deploy predict --bundle {output} VIDEO", markup=False)
    stdout.print(f"  dfer-deploy verify {output} --checkpoint {checkpoint} --data LIST", markup=False)
    if json_file:
        write_json(json_file, {"bundle": str(output), "written": written, "parity": manifest.parity})
