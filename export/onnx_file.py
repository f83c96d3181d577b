"""Write a graph module to an ONNX file whose bytes depend only on the weights and the tools."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from dfer_deploy import __version__
from dfer_deploy.errors import CheckpointError, spelled
from dfer_deploy.specs import GraphSpec

OPSET = 18
IR_VERSION = 10
"""Old enough for every onnxruntime since 1.18."""

_MAX_BYTES = 2**31 - 1
"""Largest size of one Protobuf message."""


def onnx_from_graph(graph: nn.Module, spec: GraphSpec, path: Path) -> None:
    """Export a graph with dynamic batch and time to a single ONNX file, and check the file.

    Args:
        graph: a module that takes the tensors of ``spec.inputs`` in this order.
        spec: the required names, types and shapes.
        path: path of the file to write.

    Raises:
        DferDeployError: the file would be larger than 2 GB.
    """
    model = _traced(graph, spec)
    _strip(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "dfer-deploy", __version__
    model.graph.name = spec.name
    _check_interface(model, spec)
    if model.ByteSize() > _MAX_BYTES:
        raise CheckpointError(
            f"{spec.name} would have {model.ByteSize() / 1e9:.1f} GB, one ONNX file holds 2.1 GB; "
            f"export with {spelled('precision', 'fp16')} or use a smaller backbone"
        )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _traced(graph: nn.Module, spec: GraphSpec) -> onnx.ModelProto:
    # Sizes 2 and 3 instead of 1, because torch.export would treat a 1 as a constant.
    sizes = {"batch": 2, "time": 3}
    examples: list[Tensor] = []
    dynamic = []
    for tensor in spec.inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
        examples.append(torch.zeros(shape, dtype=getattr(torch, tensor.dtype)))
        dynamic.append({i: torch.export.Dim.DYNAMIC for i, dim in enumerate(tensor.shape) if isinstance(dim, str)})
    names = [output.name for output in spec.outputs]
    with warnings.catch_warnings(), _quiet("torch.onnx"), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            tuple(examples),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=tuple(dynamic),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=names,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - with dynamo=True a program is returned, says the documentation
    return program.model_proto


def _strip(model: onnx.ModelProto) -> None:
    """Remove what torch's exporter adds about its own run: source paths, stack traces, intermediate shapes."""
    graph = model.graph
    del model.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.ClearField("doc_string")
    for items in (graph.node, graph.initializer, graph.input, graph.output):
        for item in items:
            item.ClearField("doc_string")
            del item.metadata_props[:]


def _check_interface(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Name the dynamic dimensions as in the contract, and compare everything else with it."""
    pairs = [*zip(model.graph.input, spec.inputs, strict=True), *zip(model.graph.output, spec.outputs, strict=True)]
    for value, tensor in pairs:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        wanted = [dim if isinstance(dim, int) else None for dim in tensor.shape]
        if (value.name, dtype, fixed) != (tensor.name, tensor.numpy_dtype, wanted):
            raise RuntimeError(f"exported {value.name} {dtype} {fixed}, the contract says {tensor}")
        for dim, name in zip(dims, tensor.shape, strict=True):
            if isinstance(name, str):
                dim.dim_param = name


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
