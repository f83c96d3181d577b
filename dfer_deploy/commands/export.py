"""``dfer-deploy export``"""

from __future__ import annotations

import shlex
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dfer_deploy.api.export_bundle import export_bundle
from dfer_deploy.bundles.blocks import encoder_blocks, head_blocks
from dfer_deploy.bundles.bundle import TARGETS, Bundle, Manifest, Target
from dfer_deploy.clips.timed import MAX_INTERVAL_S, MIN_INTERVAL_S
from dfer_deploy.commands.options import class_names_option, json_option, names_of, prompt_position_option
from dfer_deploy.commands.serving_options import serving_options
from dfer_deploy.console import stdout, table
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.files import refuse_to_replace_input, write_json
from dfer_deploy.specs import ModelSpec, Precision, PromptPosition


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The bundle's folder.  [default: CHECKPOINT's name]"
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    help="tensorrt, onnxruntime: NVIDIA's container. embedded: the Triton that pip installs, for this machine.  "
    "[default: tensorrt where there is a GPU, else embedded]",
)
@click.option(
    "--precision",
    type=click.Choice(typing.get_args(Precision)),
    help="Of weights and matrix products.  [default: fp16 for the target tensorrt, else fp32]",
)
@click.option(
    "--keep-fp32",
    callback=names_of,
    metavar="BLOCK,…",
    help="Blocks of an fp16 export that stay fp32, such as encoder.0,projection; verify --bisect finds them.",
)
@prompt_position_option
@class_names_option
@click.option(
    "--frame-interval-s",
    type=click.FloatRange(MIN_INTERVAL_S, MAX_INTERVAL_S),
    help="Seconds between the 16 frames that the model saw of a training clip, which a reference checkpoint does not "
    "say; predict and stream keep to it.  [default: CHECKPOINT's, where it knows]",
)
@click.option("--name", default="dfer", show_default=True, help="Prefix of the Triton model names.")
@serving_options(max_batch_size="64 for the target tensorrt, else 16")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--add-version", is_flag=True, help="Add to an existing bundle as its next version, for rollback.")
@json_option
def export(
    checkpoint: Path,
    output: Path | None,
    target: Target | None,
    precision: Precision | None,
    keep_fp32: tuple[str, ...] | None,
    prompt_position: PromptPosition | None,
    class_names: tuple[str, ...] | None,
    frame_interval_s: float | None,
    name: str,
    serving: dict[str, Any],
    force: bool,
    add_version: bool,
    json_file: Path | None,
) -> None:
    """Turn CHECKPOINT into a bundle: two checked ONNX graphs, a Triton model repository and a manifest."""
    if json_file:
        refuse_to_replace_input(json_file, [checkpoint])
    options = ExportOptions(
        target=target,
        precision=precision,
        name=name,
        prompt_position=prompt_position,
        class_names=class_names,
        keep_fp32=keep_fp32 or (),
        frame_interval_s=frame_interval_s,
    )
    result = export_bundle(checkpoint, output, options, serving=serving, force=force, add_version=add_version)
    bundle = result.bundle
    if not result.written:
        stdout.print(f"{bundle.path} is up to date: same checkpoint, options and tools; nothing was done", markup=False)
    _print_graphs(bundle)
    stdout.print("next:")
    typed, from_checkpoint = shlex.quote(str(bundle.path)), shlex.quote(str(checkpoint))
    for line in (
        *([f"build {typed}"] if bundle.manifest.target == "tensorrt" else []),
        f"serve {typed}",
        f"predict --bundle {typed} VIDEO",
        f"verify {typed} --checkpoint {from_checkpoint} --data LIST",
    ):
        stdout.print(f"  dfer-deploy {line}", markup=False)
    if json_file:
        write_json(json_file, result.to_dict())


def _print_graphs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    parity = manifest.parity
    sizes = {path: path.stat().st_size / 1e6 for path in (bundle.image_encoder_onnx, bundle.temporal_head_onnx)}
    errors = (f"{parity['relative_feature_error']:g} of a feature", f"{parity['head_logit_error']:g} logit")
    rows: list[tuple[str, ...]] = [
        (str(path.relative_to(bundle.path)), _precision(manifest, blocks), f"{size:.1f} MB", f"≤ {error}")
        for (path, size), error, blocks in zip(sizes.items(), errors, (encoder_blocks, head_blocks), strict=True)
    ]
    rows.append(("both together", "", f"{sum(sizes.values()):.1f} MB", f"≤ {parity['logit_error']:g} logit"))
    table(str(bundle.path), ("graph", "precision", "size", "largest error against PyTorch on drawn frames"), rows)


def _precision(manifest: Manifest, blocks: Callable[[ModelSpec], tuple[str, ...]]) -> str:
    """Return the precision of a graph, with its blocks that stay fp32."""
    kept = [name for name in blocks(manifest.spec) if name in manifest.keep_fp32]
    return f"{manifest.precision}, in fp32: {', '.join(kept)}" if kept else manifest.precision
