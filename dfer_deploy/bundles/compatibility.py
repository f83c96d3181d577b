"""Compatibility of a TensorRT plan with a GPU and with a version of TensorRT.

Source: NVIDIA TensorRT documentation 10.16 and 11.4, "Engine Compatibility" and "Support Matrix". Only loading a plan
proves that it can be loaded; this module reports what is known before.
"""

from __future__ import annotations

from dataclasses import dataclass

from dfer_deploy.bundles.engine_records import Builder, Device
from dfer_deploy.hardware import Gpu

SECURITY_FLOOR = "26.07"
"""The first release of Triton's container that fixes two critical vulnerabilities."""


@dataclass(frozen=True)
class Container:
    """A release of ``nvcr.io/nvidia/tritonserver`` and the version of its TensorRT."""

    tag: str
    tensorrt: str

    @property
    def image(self) -> str:
        return f"nvcr.io/nvidia/tritonserver:{self.tag}-py3"


CONTAINERS = (
    Container("26.06", "11.0"),
    Container("26.07", "11.1.0"),
    Container("26.08", "11.2.1"),
)
"""The releases whose version of TensorRT is known. Name another one with ``--image``."""


def gpu_mismatch(builder: Builder, device: Device | None, gpu: Gpu) -> str:
    """Explain why a plan does not fit a GPU; the text is empty if it fits.

    Args:
        builder: the builder of the plan.
        device: GPU that the plan was built on; None if it was built without one.
        gpu: GPU that is to run the plan.
    """
    if builder.module != "tensorrt":
        return f"they were built with {builder.module}, whose engines Triton does not load"
    if device is None:
        return "they were built without a GPU, so it is not known for which"
    built_on = f"{device.name} (compute capability {device.compute_capability})"
    here, there = version_numbers(gpu.compute_capability), version_numbers(device.compute_capability)
    if builder.hardware_compatibility == "ampere_plus":
        reason = f"they need an Ampere GPU or a newer one (compute capability 8.0), they were built on {built_on}"
        return "" if here >= (8, 0) else reason
    if here != there:
        return f"they were built on {built_on}, another compute capability"
    if builder.hardware_compatibility == "none" and gpu.name != device.name:
        return f"they were built on {built_on}, another model: TensorRT warns that they may be slow or fail"
    return ""


def tensorrt_mismatch(builder: Builder, version: str) -> str:
    """Explain why a plan does not run with a version of TensorRT; the text is empty if it runs.

    Only the parts that both versions state are compared.
    """
    built, runs = version_numbers(builder.version), version_numbers(version)
    length = min(len(built), len(runs))
    built, runs = built[:length], runs[:length]
    if built == runs:
        return ""
    if not builder.version_compatible:
        return f"built with TensorRT {builder.version}, and a plan runs with that version only"
    if runs > built and (runs[0] == built[0] or (built[0], runs[0]) == (10, 11)):
        return ""
    return f"built with TensorRT {builder.version}, whose plans run with later versions of its generation only"


def fitting_containers(builder: Builder) -> list[Container]:
    """List the releases without known critical vulnerabilities that run the plans, the oldest first."""
    return [
        container
        for container in CONTAINERS
        if container.tag >= SECURITY_FLOOR and not tensorrt_mismatch(builder, container.tensorrt)
    ]


def version_numbers(version: str) -> tuple[int, ...]:
    """Split a version into its leading numbers: ``10.16.0.72`` into (10, 16, 0, 72), ``11.4rc1`` into (11, 4)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
