from pathlib import Path

import pytest
import torch

from dfer_deploy.bundle import Bundle, ServingOptions
from dfer_deploy.errors import DferDeployError
from dfer_deploy.runtimes.available import RUNTIMES, cuda_devices, open_predictor, usual_runtimes
from dfer_deploy.runtimes.predictor import Predictor

no_gpu = pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU")


@pytest.fixture(scope="module")
def engineless(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For the target tensorrt, not built."""
    from dfer_deploy.export.pipeline import ExportOptions, export_bundle

    options = ExportOptions("tensorrt", ServingOptions(max_batch_size=8))
    return export_bundle(own_checkpoint, tmp_path_factory.mktemp("engineless") / "tiny", options)[0]


def test_the_driver_and_pytorch_count_the_same_gpus() -> None:
    assert cuda_devices() == torch.cuda.device_count()


def test_an_embedded_bundle_runs_on_the_cpu_like_its_server(bundle: Bundle) -> None:
    usual = usual_runtimes(bundle)
    assert usual.runtimes == ("onnxruntime-cpu",)
    assert "target 'embedded'" in usual.no_tensorrt


def test_engines_that_are_not_built_are_told_with_the_command(engineless: Bundle) -> None:
    usual = usual_runtimes(engineless)
    assert "tensorrt" not in usual.runtimes
    assert f"dfer-deploy build {engineless.path}" in usual.no_tensorrt


@no_gpu
def test_built_engines_need_a_gpu(engineless: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer_deploy.runtimes.available.engines_of", lambda bundle: object())
    assert usual_runtimes(engineless).no_tensorrt == "this machine has no NVIDIA GPU"


@no_gpu
def test_an_impossible_choice_is_an_error_that_says_why(bundle: Bundle, engineless: Bundle) -> None:
    with pytest.raises(DferDeployError, match="target 'embedded' and has no TensorRT engines"):
        open_predictor("tensorrt", bundle)
    with pytest.raises(DferDeployError, match="are not built; build them with: dfer-deploy build"):
        open_predictor("tensorrt", engineless)
    with pytest.raises(DferDeployError, match="onnxruntime"):
        open_predictor("onnxruntime-cuda", bundle)


def test_every_runtime_is_a_predictor_or_an_error(bundle: Bundle) -> None:
    for runtime in RUNTIMES:
        try:
            predictor: Predictor = open_predictor(runtime, bundle)
        except DferDeployError:
            continue
        with predictor:
            assert predictor.name.startswith("onnxruntime fp32")
