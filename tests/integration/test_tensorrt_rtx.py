"""NVIDIA's own builder, ahead of time on a CPU: it rejects what TensorRT would reject."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model

from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.specs import contract_for

trt = pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX builder is not installed")


class _Messages(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.texts: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.texts.append(message)


def build(path: Path, profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> int:
    """Builds an engine for compute capability 8.0 and returns its size in bytes."""
    logger = _Messages()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(path))
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    optimisation_profile = builder.create_optimization_profile()
    optimisation_profile.set_shape(network.get_input(0).name, *profile)
    assert config.add_optimization_profile(optimisation_profile) == 0
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, logger.texts
    return int(engine.nbytes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("depth", [0, 2])
def test_both_graphs_build_with_dynamic_batch_and_time(tmp_path: Path, precision: Any, depth: int) -> None:
    model = tiny_model(depth=depth)
    contract = contract_for(model.spec)
    for spec, graph, tail in (
        (contract.image_encoder, ImageEncoderGraph, (32, 32, 3)),
        (contract.temporal_head, TemporalHeadGraph, (64,)),
    ):
        path = tmp_path / f"{spec.name}.onnx"
        with torch.inference_mode():
            module = graph(model, precision)
        onnx_from_graph(module, spec, path)
        assert build(path, ((1, 1, *tail), (4, 16, *tail), (64, 16, *tail))) > 1000
