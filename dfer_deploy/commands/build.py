"""``dfer-deploy build BUNDLE``"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import click

from dfer_deploy.api.build_engines import build_engines
from dfer_deploy.bundles.engine_records import HARDWARE_COMPATIBILITY, BuildOptions
from dfer_deploy.commands.options import bundle_argument, json_option
from dfer_deploy.console import stdout, table
from dfer_deploy.files import write_json


@click.command()
@bundle_argument
@click.option(
    "--builder",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    default="tensorrt",
    show_default=True,
    help="tensorrt_rtx needs no GPU; Triton cannot load its engines, but it refuses what TensorRT would refuse.",
)
@click.option("--opt-batch", type=int, help="Clips in the usual execution, for which kernels are chosen.  [default: 8]")
@click.option("--optimization-level", type=int, default=3, show_default=True, help="0 builds fast, 5 searches longest.")
@click.option("--workspace-mib", type=int, help="Device memory that a layer may use.  [default: all there is]")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(HARDWARE_COMPATIBILITY),
    default="none",
    show_default=True,
    help="Which other GPUs may load the engines; wider is slower.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Later versions of TensorRT may load the engines, which then carry code that the server executes.",
)
@json_option
def build(
    bundle: Path,
    builder: Literal["tensorrt", "tensorrt_rtx"],
    opt_batch: int | None,
    optimization_level: int,
    workspace_mib: int | None,
    hardware_compatibility: str,
    version_compatible: bool,
    json_file: Path | None,
) -> None:
    """Build the TensorRT engines of BUNDLE for this machine's GPU.

    Run it on the machine that serves, with the server's version of TensorRT. The best place is the serving image, where
    BUNDLE/build_engines.py does the same without dfer-deploy. Engines that exist already are left unchanged.
    """
    options = BuildOptions(
        optimization_level,
        None if workspace_mib is None else workspace_mib << 20,
        hardware_compatibility,
        version_compatible,
    )
    result = build_engines(bundle, options, builder=builder, opt_batch=opt_batch)
    found = result.engines
    device = found.device.name if found.device else "no GPU, built ahead of time"
    table(
        f"{bundle}: {found.builder.module} {found.builder.version}, {device}",
        ("engine", "precision", "matrix products", "size", "clips, usual and largest", "seconds"),
        [
            (
                engine.plan,
                engine.precision,
                ", ".join(f"{count} {dtype}" for dtype, count in engine.matrix_products.items()),
                f"{engine.bytes / 1e6:.1f} MB",
                " and ".join(str(shape[0]) for shapes in engine.profile.values() for shape in (shapes.opt, shapes.max)),
                f"{engine.seconds:.1f}" if graph in result.built else "built before",
            )
            for graph, engine in found.engines.items()
        ],
    )
    stdout.print(f"recorded in {result.sidecar}", markup=False)
    if builder == "tensorrt":
        stdout.print(f"next:\n  dfer-deploy serve {shlex.quote(str(bundle))}", markup=False)
    else:
        stdout.print("Triton cannot load these engines; build with tensorrt on the machine that serves.")
    if json_file:
        write_json(json_file, result.to_dict())
