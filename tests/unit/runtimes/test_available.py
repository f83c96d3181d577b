import sys
from pathlib import Path

import pytest
import torch

from dfer_deploy.api.contestants import choose_contestants
from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.bundles.engine_records import Builder, EngineSet
from dfer_deploy.errors import DferDeployError, MissingExtraError, RuntimeUnavailableError
from dfer_deploy.hardware import CudaDriver, Gpu, ask_cuda_driver
from dfer_deploy.runtimes.available import (
    RUNTIMES,
    open_predictor,
    tensorrt_obstacle,
    usual_runtime,
    usual_runtimes,
)
from dfer_deploy.runtimes.predictor import Predictor

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 85_000_000_000)

no_gpu = pytest.mark.skipif(bool(ask_cuda_driver().gpus), reason="there is a GPU")


@pytest.fixture(scope="module")
def engineless(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For the target tensorrt, not built."""
    from dfer_deploy.export.export_options import ExportOptions
    from dfer_deploy.export.pipeline import export_to_folder

    options = ExportOptions("tensorrt", ServingOptions(max_batch_size=8))
    return export_to_folder(own_checkpoint, tmp_path_factory.mktemp("engineless") / "tiny", options)[0]


def test_the_driver_and_pytorch_count_the_same_gpus() -> None:
    assert len(ask_cuda_driver().gpus) == torch.cuda.device_count()


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
    monkeypatch.setattr(Bundle, "engines", property(lambda bundle: object()))
    assert usual_runtimes(engineless).no_tensorrt == "this machine has no NVIDIA GPU"


def test_engines_that_carry_code_need_the_permission_only(engineless: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    built = EngineSet(Builder(module="tensorrt", version="11.1.0.106", version_compatible=True), None, {})
    monkeypatch.setattr(Bundle, "engines", property(lambda bundle: built))
    monkeypatch.setattr("dfer_deploy.runtimes.available.ask_cuda_driver", lambda: CudaDriver("13.0", (H100,)))
    assert "allow it with allow_host_code=True" in tensorrt_obstacle(engineless)
    assert "allow_host_code" not in tensorrt_obstacle(engineless, host_code_allowed=True)
    assert "allow_host_code" in choose_contestants(engineless, ()).left_out["TensorRT in this process"]
    left_out = choose_contestants(engineless, (), host_code_allowed=True).left_out
    assert "allow_host_code" not in str(left_out)


def test_tensorrt_needs_no_onnxruntime_beside_it(engineless: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'onnxruntime'.*\[runtime\]"):
        usual_runtime(engineless)
    monkeypatch.setattr("dfer_deploy.runtimes.available.tensorrt_obstacle", lambda bundle, **allowed: "")
    assert usual_runtime(engineless) == "tensorrt"


def test_tensorrt_without_pytorch_asks_for_the_gpu_packages(
    engineless: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dfer_deploy.runtimes.tensorrt_predictor", raising=False)
    with pytest.raises(MissingExtraError, match=r"needs the package 'torch'.*\[gpu\]"):
        open_predictor("tensorrt", engineless)


@no_gpu
def test_an_impossible_choice_is_an_error_that_says_why(bundle: Bundle, engineless: Bundle) -> None:
    with pytest.raises(RuntimeUnavailableError, match="target 'embedded' and has no TensorRT engines"):
        open_predictor("tensorrt", bundle)
    with pytest.raises(RuntimeUnavailableError, match="are not built; build them with: dfer-deploy build"):
        open_predictor("tensorrt", engineless)
    with pytest.raises(RuntimeUnavailableError, match="onnxruntime"):
        open_predictor("onnxruntime-cuda", bundle)


def test_every_runtime_is_a_predictor_or_an_error(bundle: Bundle) -> None:
    for runtime in RUNTIMES:
        try:
            predictor: Predictor = open_predictor(runtime, bundle)
        except DferDeployError:
            continue
        with predictor:
            assert predictor.name.startswith("onnxruntime fp32")
