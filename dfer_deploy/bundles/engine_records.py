"""The options of the TensorRT engine builder, and the record that it writes. Needs only the standard library.

This module is a part of ``build_engines.py`` in a bundle; see ``export.standalone``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dfer_deploy.errors import EngineError
from dfer_deploy.hardware import Gpu
from dfer_deploy.plain_data import check_fields

OLDEST_TENSORRT = (10, 12)
"""The oldest supported version, the first whose strongly typed networks support the graphs."""

SIDECAR = "engines/engines.json"
SIDECAR_FORMAT = "dfer-deploy-engines/1"
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
MAX_WORKSPACE_BYTES = 1 << 40
"""Limits the builder's workspace to 1 TiB. No GPU has so much memory, so a larger value is a mistake."""

_MODULE_NAME = re.compile(r"[a-z_]{1,32}")
_MODULE_VERSION = re.compile(r"\d{1,4}(\.\w{1,12}){1,4}", re.ASCII)
"""Limit the texts of a record, because they appear in messages and in commands to type."""


@dataclass(frozen=True)
class Profile:
    """The shapes of a dynamic input, [B, T, …].

    Attributes:
        min: the smallest shape.
        opt: the usual shape, for which the builder chooses kernels.
        max: the largest shape.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """The options of the builder.

    Attributes:
        optimization_level: 0 (the fastest build) to 5 (the longest search); 3 is TensorRT's default.
        workspace_bytes: device memory in bytes that a layer may use while it runs. None is TensorRT's default, all
            device memory.
        hardware_compatibility: ``none`` for the building GPU's model only, ``same_compute_capability`` for all GPUs of
            its compute capability, ``ampere_plus`` for every GPU since Ampere. Wider compatibility is slower.
        version_compatible: let later TensorRT versions load the plan. Such a plan contains code that the loading
            process executes, so Triton loads it only with ``--backend-config=tensorrt,version-compatible=true``.

    Raises:
        EngineError: a value is out of range.
    """

    optimization_level: int = 3
    workspace_bytes: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
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
    """The builder of the engines and its options.

    Attributes:
        module: ``tensorrt``, or a module with its API.
        version: version of the module, for example ``11.1.0.106``.

    Raises:
        EngineError: a value is out of range.
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
        cuda_driver: highest CUDA version that the GPU's driver supports, for example ``13.0``.
    """

    cuda_driver: str

    def __post_init__(self) -> None:
        if re.fullmatch(r"\d{1,2}\.\d{1,2}", self.compute_capability) is None:
            raise EngineError(f"device.compute_capability is {self.compute_capability!r}, expected as 9.0")


@dataclass(frozen=True)
class EngineRecord:
    """The record of one engine.

    Attributes:
        plan: path of the plan in the bundle.
        sha256: SHA-256 of the plan.
        bytes: size of the plan in bytes.
        onnx: path of the graph in the bundle.
        onnx_sha256: SHA-256 of the graph from which the engine was built.
        profile: shapes of each input, by its name.
        precision: ``fp16``, ``fp32`` or, if the bundle keeps blocks in fp32, ``mixed``; read from the network.
        matrix_products: number of matrix products in the network, by type.
        seconds: duration of the build in seconds.
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
    """The content of ``engines/engines.json``: the builder, its GPU, and the engines by the names of their graphs."""

    builder: Builder
    device: Device | None
    engines: dict[str, EngineRecord]
