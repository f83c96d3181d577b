"""Build a bundle's TensorRT engines for this machine's GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.engine_builds import BUILDS_NAME
from dfer_deploy.bundles.engine_records import SIDECAR_FORMAT, BuildOptions, EngineSet
from dfer_deploy.bundles.integrity import check_file, open_bundle
from dfer_deploy.console import progress_bar
from dfer_deploy.errors import extras_named, spelled
from dfer_deploy.plain_data import checked_arguments
from dfer_deploy.specs import require


@dataclass(frozen=True)
class BuildResult:
    """The outcome of a build.

    Attributes:
        sidecar: the file that records the engines.
        engines: all engines of the bundle for this machine.
        built: names of the graphs whose engines were built now; the other engines existed already.
    """

    sidecar: Path
    engines: EngineSet
    built: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in the form that ``build --json`` writes."""
        return {"format": SIDECAR_FORMAT, **dataclasses.asdict(self.engines), "built_now": list(self.built)}


@extras_named("building engines")
@checked_arguments
def build_engines(
    bundle: Bundle | Path | str,
    options: BuildOptions | None = None,
    *,
    builder: Literal["tensorrt", "tensorrt_rtx"] = "tensorrt",
    opt_batch: int | None = None,
) -> BuildResult:
    """Build the engines of a bundle. Engines that exist already are left unchanged.

    Args:
        bundle: an opened bundle of the target ``tensorrt``, or its folder.
        options: how long to search, and which other GPUs and versions may load the engines; None for the defaults.
        builder: TensorRT, or TensorRT-RTX. TensorRT-RTX needs no GPU, but Triton cannot load its engines.
        opt_batch: number of clips in a usual execution, for which the kernels are chosen; None for 8.

    Raises:
        DferDeployError: the bundle has another target, TensorRT is not installed, or an engine cannot be built.
    """
    from dfer_deploy.export.bundle_engines import build_bundle, builder_module

    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle), check_files=False)
    target = opened.manifest.target
    require(
        target == "tensorrt",
        f"{opened.path} has the target {target!r}, expected 'tensorrt'; export with {spelled('target', 'tensorrt')}",
    )
    check_file(opened, BUILDS_NAME)
    with progress_bar(counts=False) as bar:
        tasks = {
            graph.name: bar.add_task(graph.name, total=1.0, start=False)
            for graph in (opened.contract.image_encoder, opened.contract.temporal_head)
        }

        def report(graph: str, phase: str, share: float) -> None:
            bar.start_task(tasks[graph])
            bar.update(tasks[graph], completed=share, description=f"{graph}: {phase}")

        sidecar, found, built = build_bundle(
            builder_module(builder), opened.path, options or BuildOptions(), opt_batch=opt_batch, report=report
        )
    return BuildResult(sidecar, found, tuple(built))
