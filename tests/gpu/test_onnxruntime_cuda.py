"""onnxruntime's CUDA provider answers like PyTorch, on the GPU and not beside it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny import tiny_model

from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor, has_cuda_provider
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.specs import Precision, contract_for
from dfer_deploy.verification.limits import LIMITS

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["fp32", "fp16"])
def predictors(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TorchPredictor, OnnxRuntimePredictor, Precision]]:
    if not has_cuda_provider():
        pytest.skip("the installed onnxruntime knows no CUDA; install onnxruntime-gpu in its place")
    model, precision = tiny_model(), request.param
    contract, folder = contract_for(model.spec), tmp_path_factory.mktemp("onnx")
    paths = []
    for spec, graph in ((contract.image_encoder, ImageEncoderGraph), (contract.temporal_head, TemporalHeadGraph)):
        paths.append(folder / f"{spec.name}.onnx")
        with torch.inference_mode():
            module = graph(model, precision)
        onnx_from_graph(module, spec, paths[-1])
    with TorchPredictor(model) as pytorch, OnnxRuntimePredictor(*paths, device="cuda") as exported:
        yield pytorch, exported, precision


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 16), (2, 9), (16, 16)])
def test_answers_are_pytorchs(
    predictors: tuple[TorchPredictor, OnnxRuntimePredictor, Precision], batch: int, frames: int
) -> None:
    pytorch, exported, precision = predictors
    clips = np.ascontiguousarray(drawn_clips(batch, 32)[:, :frames])
    features = pytorch.encode(clips)
    expected = pytorch.classify(features).logits
    assert np.abs(exported.predict(clips).logits - expected).max() <= LIMITS[precision].logits
    assert np.abs(exported.classify(features).logits - expected).max() <= LIMITS[precision].head_logits


def test_both_sessions_are_on_the_gpu(
    predictors: tuple[TorchPredictor, OnnxRuntimePredictor, Precision],
) -> None:
    _, exported, _ = predictors
    for session in (exported._encoder, exported._head):
        assert session.get_providers()[0] == "CUDAExecutionProvider"
        assert session.get_provider_options()["CUDAExecutionProvider"]["use_tf32"] == "0"
