import pytest

from dfer_deploy.api.contestants import Contestants, choose_contestants
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import SettingError


def test_everything_that_can_be_compared_is(bundle: Bundle) -> None:
    assert choose_contestants(bundle, ()) == Contestants(("onnxruntime-cpu",), True, {})
    assert choose_contestants(bundle, (), in_process=True) == Contestants(("onnxruntime-cpu",), False, {})


def test_a_choice_is_taken_as_it_is(bundle: Bundle) -> None:
    assert choose_contestants(bundle, ("triton",)) == Contestants((), True, {})
    assert choose_contestants(bundle, ("triton", "tensorrt", "onnxruntime-cpu")) == Contestants(
        ("onnxruntime-cpu", "tensorrt"), True, {}
    )
    assert choose_contestants(bundle, ("onnxruntime-cuda",)) == Contestants(("onnxruntime-cuda",), False, {})


def test_contradictions_are_told(bundle: Bundle) -> None:
    with pytest.raises(SettingError, match="url names a server, but runtimes omits it"):
        choose_contestants(bundle, ("tensorrt",), url="grpc://127.0.0.1:8001")
    with pytest.raises(SettingError, match="choose one"):
        choose_contestants(bundle, ("triton",), in_process=True)
