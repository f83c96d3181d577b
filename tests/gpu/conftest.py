"""What every test on a GPU needs: a GPU, TensorRT, and engines of a tiny and of a full-sized model.

Nothing here was run before a machine with a GPU ran it: ``pytest tests/gpu``. ``selftest --gpu`` is the same in short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_spec

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.engine_records import BuildOptions, Profile
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.errors import DferDeployError
from dfer_deploy.export.engine import Engine, engine_from_onnx
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.runtimes.predictor import Frames
from dfer_deploy.runtimes.tensorrt_engine import import_tensorrt
from dfer_deploy.runtimes.tensorrt_predictor import TensorRtPredictor
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.specs import Contract, ModelSpec, Precision, contract_for

MAX_BATCH = 8


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    """The GPU's name."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device on this machine")
    return torch.cuda.get_device_name()


@pytest.fixture(scope="session")
def trt(gpu: str) -> Any:
    """The module ``tensorrt``."""
    try:
        return import_tensorrt()
    except DferDeployError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Built:
    """A model with random weights, its graphs and their engines, for 1 to 8 clips of 1 to 16 frames."""

    model: DferClip
    contract: Contract
    precision: Precision
    onnx: tuple[Path, Path]
    plans: tuple[Path, Path]
    engines: tuple[Engine, Engine]

    def predictor(self, **options: Any) -> TensorRtPredictor:
        return TensorRtPredictor(*self.plans, self.contract, **options)

    def clips(self, count: int, frames: int = 16) -> Frames:
        drawn = drawn_clips(min(count, 4), self.model.spec.clip.vision.image_size)
        return np.ascontiguousarray(drawn[np.arange(count) % len(drawn), :frames])


def build(trt: Any, folder: Path, model: DferClip, precision: Precision) -> Built:
    contract, clip = contract_for(model.spec), model.spec.clip
    side = clip.vision.image_size
    onnx, plans, engines = [], [], []
    for spec, graph, tail in (
        (contract.image_encoder, ImageEncoderGraph, (side, side, 3)),
        (contract.temporal_head, TemporalHeadGraph, (clip.embed_dim,)),
    ):
        onnx.append(folder / f"{spec.name}.onnx")
        with torch.inference_mode():
            module = graph(model, precision)
        onnx_from_graph(module, spec, onnx[-1])
        profile = Profile((1, 1, *tail), (4, 16, *tail), (MAX_BATCH, 16, *tail))
        engines.append(
            engine_from_onnx(trt, onnx[-1], {spec.inputs[0].name: profile}, BuildOptions(), precision=precision)
        )
        plans.append(folder / f"{spec.name}.plan")
        plans[-1].write_bytes(engines[-1].plan)
    return Built(model, contract, precision, (onnx[0], onnx[1]), (plans[0], plans[1]), (engines[0], engines[1]))


def full_sized_model() -> DferClip:
    """ViT-B/32 and the paper's temporal model, random weights."""
    torch.manual_seed(0)
    return DferClip(ModelSpec(prompts=tiny_spec().prompts)).eval()


@pytest.fixture(scope="session")
def built_models(trt: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Precision], Built]:
    """Builds each model once, when it is asked for."""
    models: dict[tuple[str, Precision], Built] = {}

    def built(size: str, precision: Precision) -> Built:
        if (size, precision) not in models:
            model = tiny_model() if size == "tiny" else full_sized_model()
            folder = tmp_path_factory.mktemp(f"{size}-{precision}")
            models[size, precision] = build(trt, folder, model, precision)
        return models[size, precision]

    return built


@pytest.fixture(params=[("tiny", "fp32"), ("tiny", "fp16"), ("ViT-B-32", "fp32"), ("ViT-B-32", "fp16")], ids="-".join)
def built(request: pytest.FixtureRequest, built_models: Callable[[str, Precision], Built]) -> Built:
    """Every size in every precision."""
    return built_models(*request.param)


@pytest.fixture
def tiny_built(built_models: Callable[[str, Precision], Built]) -> Built:
    return built_models("tiny", "fp16")


@pytest.fixture
def tensorrt(tiny_built: Built) -> Iterator[TensorRtPredictor]:
    """The tiny fp16 model, with CUDA graphs."""
    with tiny_built.predictor() as predictor:
        yield predictor


@pytest.fixture
def pytorch(built: Built) -> Iterator[TorchPredictor]:
    with TorchPredictor(built.model) as predictor:
        yield predictor


@pytest.fixture(scope="session")
def gpu_bundle(trt: Any, own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model for the target tensorrt, its engines built through the command line."""
    from click.testing import CliRunner

    from dfer_deploy.cli import group

    path = tmp_path_factory.mktemp("gpu") / "tiny.bundle"
    for arguments in (
        ("export", own_checkpoint, "-o", path, "--target", "tensorrt", "--max-batch-size", MAX_BATCH),
        ("build", path),
    ):
        result = CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return open_bundle(path)
