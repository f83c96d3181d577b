"""What is known about the TensorRT engines of a bundle: the record that the builder left beside them."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import sha256_of_file
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import require

if TYPE_CHECKING:
    from dfer_deploy.bundles.bundle import Bundle

SIDECAR = "engines/engines.json"
SIDECAR_FORMAT = "dfer-deploy-engines/1"
_MAX_SIDECAR_BYTES = 1 << 20
_NAME = re.compile(r"[a-z_]{1,32}")
_VERSION = re.compile(r"\d{1,4}(\.\w{1,12}){1,4}", re.ASCII)
"""What a record says ends in messages and in commands to type."""


@dataclass(frozen=True)
class Builder:
    """What built the engines, and how; see ``export.engine.BuildOptions``."""

    module: str
    version: str
    optimization_level: int
    workspace_bytes: int | None
    hardware_compatibility: str
    version_compatible: bool

    def __post_init__(self) -> None:
        require(_NAME.fullmatch(self.module) is not None, f"builder.module is {self.module!r}, expected a name")
        require(
            _VERSION.fullmatch(self.version) is not None, f"builder.version is {self.version!r}, expected as 11.1.0.106"
        )


@dataclass(frozen=True)
class Device:
    """The GPU that the engines were built on.

    Attributes:
        name: as the driver gives it.
        compute_capability: for example ``9.0``.
        memory_bytes: of the device.
        cuda_driver: the highest CUDA version that the driver supports, for example ``13.0``.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda_driver: str

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"\d{1,2}\.\d{1,2}", self.compute_capability) is not None,
            f"device.compute_capability is {self.compute_capability!r}, expected as 9.0",
        )


@dataclass(frozen=True)
class ProfileRecord:
    """Shapes that an input of an engine may have, [B, T, …]."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


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
    profile: dict[str, ProfileRecord]
    precision: str
    matrix_products: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class EngineSet:
    """The engines of all graphs, by the graphs' names."""

    builder: Builder
    device: Device | None
    engines: dict[str, EngineRecord]


def engines_of(bundle: Bundle) -> EngineSet | None:
    """The engines that were built from the graphs of a bundle; None if none were.

    Raises:
        DferDeployError: the record is damaged, an engine is missing or changed, or it was built from another graph.
    """
    path = bundle.path / SIDECAR
    if not path.is_file():
        return None
    again = f"build again with: dfer-deploy build {shlex.quote(str(bundle.path))}"
    try:
        if path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise ValueError(f"it has over {_MAX_SIDECAR_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != SIDECAR_FORMAT:
            raise ValueError(f"its format is not {SIDECAR_FORMAT!r}")
        records = values.pop("engines")
        found = EngineSet(
            builder=spec_from_dict(Builder, values["builder"]),
            device=None if values["device"] is None else spec_from_dict(Device, values["device"]),
            engines={name: spec_from_dict(EngineRecord, record) for name, record in records.items()},
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError, DferDeployError) as error:
        raise DferDeployError(f"{path} is damaged ({error}); {again}") from error
    batch = bundle.manifest.serving.max_batch_size
    for spec in (bundle.contract.image_encoder, bundle.contract.temporal_head):
        graph = spec.name
        if graph not in found.engines:
            raise DferDeployError(f"{path} has no engine of {graph}, the build was interrupted; {again}")
        record = found.engines[graph]
        expected = f"model_repository/{graph}/{bundle.manifest.version}/model.plan"
        if record.plan != expected or record.onnx != f"onnx/{graph}.onnx":
            raise DferDeployError(f"{path} names {PurePosixPath(record.plan)}, expected {expected}; {again}")
        if record.onnx_sha256 != bundle.manifest.files.get(record.onnx):
            raise DferDeployError(f"the engine {record.plan} was built from another graph; {again}")
        plan = bundle.path / record.plan
        if not plan.is_file() or sha256_of_file(plan) != record.sha256:
            raise DferDeployError(f"{plan} is missing or not the engine that was built; {again}")
        for tensor in spec.inputs:
            shapes = record.profile.get(tensor.name)
            rank = len(tensor.shape)
            if shapes is None or {len(shapes.min), len(shapes.opt), len(shapes.max)} != {rank}:
                raise DferDeployError(f"{path} has no profile of {tensor.name!r} with {rank} dimensions; {again}")
            if shapes.max[0] != batch:
                raise DferDeployError(
                    f"{plan} takes up to {shapes.max[0]} clips, the bundle is configured for {batch}; {again}"
                )
    return found
