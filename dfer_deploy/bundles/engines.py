"""The TensorRT engines of a bundle, checked against the record that the builder wrote."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from dfer_deploy.bundles.engine_builds import onnx_path, plan_path
from dfer_deploy.bundles.engine_records import SIDECAR, SIDECAR_FORMAT, EngineRecord, EngineSet
from dfer_deploy.errors import DferDeployError, EngineError
from dfer_deploy.files import sha256_of_file
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import GraphSpec

_MAX_SIDECAR_BYTES = 1 << 20


def read_engines(
    bundle: Path, graphs: Sequence[GraphSpec], *, version: int, largest_batch: int, files: Mapping[str, str]
) -> EngineSet | None:
    """Read the record of a bundle's engines, and check it and the SHA-256 of every plan.

    Args:
        bundle: the bundle's folder.
        graphs: graphs that must have an engine.
        version: version folder of the plans in the model repository.
        largest_batch: number of clips that must be the maximum of every engine's profile.
        files: SHA-256 of the exported files, by path.

    Returns:
        The record, or None if no engines were built.

    Raises:
        DferDeployError: the record is damaged, an engine is missing or changed, or it was built from another graph.
    """
    path = bundle / SIDECAR
    if not path.is_file():
        return None
    again = f"build again with: dfer-deploy build {shlex.quote(str(bundle))}"
    try:
        if path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise ValueError(f"it has over {_MAX_SIDECAR_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != SIDECAR_FORMAT:
            raise ValueError(f"its format is not {SIDECAR_FORMAT!r}")
        found = spec_from_dict(EngineSet, values)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError, DferDeployError) as error:
        raise EngineError(f"{path} is damaged ({error}); {again}") from error
    for graph in graphs:
        if graph.name not in found.engines:
            raise EngineError(f"{path} has no engine of {graph.name}, the build was interrupted; {again}")
        record = found.engines[graph.name]
        expected = plan_path(graph.name, version)
        if record.plan != expected or record.onnx != onnx_path(graph.name):
            raise EngineError(f"{path} names {PurePosixPath(record.plan)}, expected {expected}; {again}")
        if record.onnx_sha256 != files.get(record.onnx):
            raise EngineError(f"the engine {record.plan} was built from another graph; {again}")
        plan = bundle / record.plan
        if not plan.is_file() or sha256_of_file(plan) != record.sha256:
            raise EngineError(f"{plan} is missing or not the engine that was built; {again}")
        problem = _shape_problem(record, graph, largest_batch)
        if problem:
            raise EngineError(f"{plan} {problem}; {again}")
    return found


def _shape_problem(record: EngineRecord, graph: GraphSpec, largest_batch: int) -> str:
    """Explain what is wrong with the recorded shapes of an engine; the text is empty if they are right."""
    for tensor in graph.inputs:
        shapes = record.profile.get(tensor.name)
        rank = len(tensor.shape)
        if shapes is None or {len(shapes.min), len(shapes.opt), len(shapes.max)} != {rank}:
            return f"has no profile of {tensor.name!r} with {rank} dimensions"
        if shapes.max[0] != largest_batch:
            return f"takes up to {shapes.max[0]} clips, the bundle is configured for {largest_batch}"
    return ""
