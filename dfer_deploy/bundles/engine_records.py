"""The settings of the builder of TensorRT engines, and what it records beside them. Needs only the standard library.

A part of ``build_engines.py`` in a bundle; see ``export.standalone``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dfer_deploy.cuda_driver import Gpu
from dfer_deploy.errors import EngineError

OLDEST_TENSORRT = (10, 12)
"""The first whose strongly typed networks hold what the graphs need."""

SIDECAR = "engines/engines.json"
SIDECAR_FORMAT = "dfer-deploy-engines/1"
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
MAX_WORKSPACE_BYTES = 1 << 40
"""Limits the builder's workspace to 1 TiB, which is more than a GPU has: a larger value is a mistake."""

_MODULE_NAME = re.compile(r"[a-z_]{1,32}")
_MODULE_VERSION = re.compile(r"\d{1,4}(\.\w{1,12}){1,4}", re.ASCII)
"""What a record says ends in messages and in commands to type."""


@dataclass(frozen=True)
class Profile:
    """The smallest, the usual and the largest shape of a dynamic input, [B, T, …].

    The builder chooses kernels for the usual one.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """The builder's settings.

    Attributes:
        optimization_level: 0 (builds fast) to 5 (searches longest); 3 is TensorRT's default.
        workspace_bytes: device memory that a layer may use while it runs; None is TensorRT's default, all there is.
        hardware_compatibility: ``none`` for this GPU model only, ``ampere_plus`` for every GPU since Ampere,
            ``same_compute_capability`` for all GPUs of this one's compute capability. Wider is slower.
        version_compatible: later TensorRT versions can load the plan. It then carries code that the loading process
            executes, so Triton loads it only with ``--backend-config=tensorrt,version-compatible=true``.
    """

    optimization_level: int = 3
    workspace_bytes: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise EngineError(f"the optimisation level is {self.optimization_level}, expected 0 to 5")
        if self.workspace_bytes is not None and not 0 < self.workspace_bytes <= MAX_WORKSPACE_BYTES:
            raise EngineError(
                f"the workspace has {self.workspace_bytes >> 20} MiB, expected 1 to {MAX_WORKSPACE_BYTES >> 20}"
            )
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise EngineError(
                f"the hardware compatibility is {self.hardware_compatibility!r}, expected one of "
                + ", ".join(HARDWARE_COMPATIBILITY)
            )


@dataclass(frozen=True, kw_only=True)
class Builder(BuildOptions):
    """What built the engines, and what it was told.

    Attributes:
        module: ``tensorrt``, or a module with its API.
        version: of the module, for example ``11.1.0.106``.
    """

    module: str
    version: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if _MODULE_NAME.fullmatch(self.module) is None:
            raise EngineError(f"builder.module is {self.module!r}, expected a name")
        if _MODULE_VERSION.fullmatch(self.version) is None:
            raise EngineError(f"builder.version is {self.version!r}, expected as 11.1.0.106")


@dataclass(frozen=True)
class Device(Gpu):
    """The GPU that the engines were built on.

    Attributes:
        cuda_driver: the highest CUDA version that its driver supports, for example ``13.0``.
    """

    cuda_driver: str

    def __post_init__(self) -> None:
        if re.fullmatch(r"\d{1,2}\.\d{1,2}", self.compute_capability) is None:
            raise EngineError(f"device.compute_capability is {self.compute_capability!r}, expected as 9.0")


@dataclass(frozen=True)
class EngineRecord:
    """One engine.

    Attributes:
        plan: path of the plan in the bundle.
        sha256: of the plan.
        bytes: size of the plan.
        onnx: path of the graph in the bundle.
        onnx_sha256: of the graph that was built.
        profile: the smallest, the usual and the largest shape of each input.
        precision: ``fp16``, ``fp32`` or, where the bundle keeps blocks in fp32, ``mixed``; read from the network.
        matrix_products: how many matrix products of the network have which type.
        seconds: that the build took.
    """

    plan: str
    sha256: str
    bytes: int
    onnx: str
    onnx_sha256: str
    profile: dict[str, Profile]
    precision: str
    matrix_products: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class EngineSet:
    """The engines of all graphs, by the graphs' names: the content of ``engines/engines.json``."""

    builder: Builder
    device: Device | None
    engines: dict[str, EngineRecord]
