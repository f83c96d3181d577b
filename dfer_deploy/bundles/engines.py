"""What is known about the TensorRT engines of a bundle: the record that the builder left beside them."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from dfer_deploy.bundles.engine_builds import onnx_path, plan_path
from dfer_deploy.bundles.engine_records import SIDECAR, SIDECAR_FORMAT, EngineSet
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import sha256_of_file
from dfer_deploy.plain_data import spec_from_dict

if TYPE_CHECKING:
    from dfer_deploy.bundles.bundle import Bundle

_MAX_SIDECAR_BYTES = 1 << 20


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
        found = spec_from_dict(EngineSet, values)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError, DferDeployError) as error:
        raise DferDeployError(f"{path} is damaged ({error}); {again}") from error
    batch = bundle.manifest.serving.max_batch_size
    for spec in (bundle.contract.image_encoder, bundle.contract.temporal_head):
        graph = spec.name
        if graph not in found.engines:
            raise DferDeployError(f"{path} has no engine of {graph}, the build was interrupted; {again}")
        record = found.engines[graph]
        expected = plan_path(graph, bundle.manifest.version)
        if record.plan != expected or record.onnx != onnx_path(graph):
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
