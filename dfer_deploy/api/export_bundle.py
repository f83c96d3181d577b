"""Turn a checkpoint into a bundle."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfer_deploy.bundles.bundle import Bundle, ServingOptions, Target
from dfer_deploy.bundles.integrity import is_bundle, open_bundle
from dfer_deploy.errors import DferDeployError, extras_named, spelled
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.hardware import ask_cuda_driver
from dfer_deploy.plain_data import checked_arguments, spec_from_dict
from dfer_deploy.specs import require


@dataclass(frozen=True)
class ExportResult:
    """The outcome of an export.

    Attributes:
        bundle: the opened bundle.
        written: False if an identical bundle existed already, so that nothing had to be written.
    """

    bundle: Bundle
    written: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in the form that ``export --json`` writes."""
        return {"bundle": str(self.bundle.path), "written": self.written, "parity": self.bundle.manifest.parity}


@extras_named("exporting a bundle")
@checked_arguments
def export_bundle(
    checkpoint: Path | str,
    output: Path | str | None = None,
    options: ExportOptions | None = None,
    *,
    serving: Mapping[str, Any] | None = None,
    force: bool = False,
    add_version: bool = False,
) -> ExportResult:
    """Write a bundle: two checked ONNX graphs, a Triton model repository and a manifest. A failure leaves no files.

    Args:
        checkpoint: file of dfer-deploy or of the reference implementation.
        output: the bundle's folder; None for the checkpoint's name with the suffix ``.bundle``.
        options: what to export; None for the defaults.
        serving: fields of ``ServingOptions`` that differ from the defaults or, with ``add_version``, from the existing
            bundle's options.
        force: replace an existing bundle. Anything else in its place is refused.
        add_version: add the models to the existing bundle as the next version.

    Raises:
        DferDeployError: the checkpoint is not usable, a check failed, or the bundle cannot be written.
    """
    from dfer_deploy.export.pipeline import export_to_folder

    require(
        not (force and add_version),
        f"{spelled('force')} replaces a bundle and {spelled('add_version')} extends it; choose one",
    )
    options = options or ExportOptions()
    source = Path(checkpoint)
    folder = Path(output) if output else Path(f"{source.stem}.bundle")
    target: Target = options.target or ("tensorrt" if ask_cuda_driver().gpus else "embedded")
    usual = options.serving or ServingOptions(max_batch_size=64 if target == "tensorrt" else 16)
    if add_version and is_bundle(folder):
        with contextlib.suppress(DferDeployError):  # export_to_folder reports what is wrong with it
            usual = open_bundle(folder, check_files=False).manifest.serving
    changed = spec_from_dict(ServingOptions, {**dataclasses.asdict(usual), **(serving or {})}, "serving")
    resolved = replace(options, target=target, serving=changed)
    return ExportResult(*export_to_folder(source, folder, resolved, force=force, add_version=add_version))
