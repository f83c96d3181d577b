import onnxruntime
import pytest

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import RuntimeUnavailableError
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor, has_cuda_provider, open_session


@pytest.mark.skipif(has_cuda_provider(), reason="onnxruntime-gpu is installed")
def test_cuda_without_the_gpu_package_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(RuntimeUnavailableError, match="pip install onnxruntime-gpu"):
        OnnxRuntimePredictor.from_bundle(bundle, "cuda")


@pytest.mark.skipif(has_cuda_provider(), reason="onnxruntime-gpu is installed")
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_session_that_fell_back_to_the_cpu_is_noticed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for a provider that it lacks, onnxruntime itself warns once and answers from the CPU."""
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    with pytest.raises(RuntimeUnavailableError, match="fell back to the CPU"):
        OnnxRuntimePredictor.from_bundle(bundle, "cuda")


def test_no_session_falls_back_later(bundle: Bundle) -> None:
    """onnxruntime's own fallback would make another session on the CPU when a GPU fails in the middle."""
    predictor = OnnxRuntimePredictor.from_bundle(bundle)
    assert predictor.name == "onnxruntime fp32"
    assert not any(session._enable_fallback for session in (predictor._encoder, predictor._head))


def test_a_session_has_as_many_threads_as_cores_may_be_used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's own 0 counts all cores."""
    monkeypatch.setattr("dfer_deploy.runtimes.onnxruntime_predictor.usable_cores", lambda: 3)
    session = open_session(bundle.temporal_head_onnx, 0)
    assert session.get_session_options().intra_op_num_threads == 3
