"""What a client sees in receipts: its answer is made of its own request, or it is no answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scripted_server import Script, connected

from dfer_deploy.client.calls import Infer
from dfer_deploy.client.receipt_check import check_receipts
from dfer_deploy.client.served_model import served_model, served_receipts
from dfer_deploy.errors import IncompatibleServerError, MixedAnswerError
from dfer_deploy.triton.address import parse_url
from dfer_deploy.triton_models.receipts import digests, receipt

RECEIPTS = {"encoder_receipt": ("frames", "features"), "head_receipt": ("features", "logits")}

FRAMES = np.arange(24, dtype=np.uint8).reshape(2, 12)
FEATURES = FRAMES.astype(np.float32)
LOGITS = FEATURES[:, :3].copy()


def received() -> dict[str, Any]:
    return {"encoder_receipt": receipt([FRAMES, FEATURES]), "head_receipt": receipt([FEATURES, LOGITS])}


def check(values: dict[str, Any]) -> None:
    check_receipts("dfer", RECEIPTS, {"frames": FRAMES, "logits": LOGITS}, values)


def test_what_belongs_together_is_accepted() -> None:
    check(received())


@pytest.mark.parametrize("output", RECEIPTS)
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("row", [0, 1])
def test_one_other_tensor_is_seen(output: str, column: int, row: int) -> None:
    """What the client sent, what it received, or what went from one model to the next."""
    values = received()
    values[output][row, column] ^= 1
    with pytest.raises(MixedAnswerError):
        check(values)


@pytest.mark.parametrize("logits", [LOGITS[:1], np.concatenate([LOGITS, LOGITS]), np.float32(1)])
def test_an_answer_for_another_number_of_clips_is_seen(logits: Any) -> None:
    with pytest.raises(MixedAnswerError):
        check_receipts("dfer", RECEIPTS, {"frames": FRAMES, "logits": np.asarray(logits)}, received())


def test_clips_in_another_order_are_seen() -> None:
    values = {name: array[::-1] for name, array in received().items()}
    with pytest.raises(MixedAnswerError):
        check(values)


@pytest.mark.parametrize(
    "spoil",
    [lambda array: None, lambda array: array[:1], lambda array: array.astype(np.int32), lambda array: array[:, :1]],
    ids=["missing", "rows", "dtype", "columns"],
)
def test_a_receipt_of_another_form_is_no_receipt(spoil: Callable[[Any], Any]) -> None:
    values = received()
    values["head_receipt"] = spoil(values["head_receipt"])
    with pytest.raises(MixedAnswerError):
        check(values)


def test_digests_see_every_byte_and_where_images_end() -> None:
    frames = np.zeros((3, 2, 2), np.uint8)
    frames[1, 1, 1] = 1
    assert len(set(digests(frames).tolist())) == 2
    images = np.array([[b"ab", b"c"], [b"a", b"bc"], [b"ab", b"c"]], object)
    first, other, same = digests(images).tolist()
    assert first == same != other
    assert digests(frames[:, ::-1]).tolist() == digests(frames[:, ::-1].copy()).tolist()


def test_a_mixed_answer_is_asked_for_again() -> None:
    def fail(number: int, call: Infer) -> None:
        if number < 3:
            raise MixedAnswerError("mixed")

    script = Script(fail)
    answer = script(connected(script).answer(np.zeros((16, 8, 8, 3), np.uint8)))
    assert answer.expression == "anger: loud"
    assert len(script.infers) == 3


ADDRESS = parse_url("grpc://host:1")
ENSEMBLE = {
    "max_batch_size": 4,
    "input": [{"name": "frames", "dims": ["-1", "8", "8", "3"]}],
    "output": [
        {"name": "probabilities", "dims": ["2"]},
        {"name": "logits", "dims": ["2"]},
        {"name": "head_receipt", "dims": ["3"]},
    ],
    "ensemble_scheduling": {"step": [{"model_name": "e"}, {"model_name": "h"}]},
    "parameters": {"head_receipt": {"string_value": "frame_features,logits"}},
}


def test_receipts_are_read_from_the_configuration_and_are_no_classes() -> None:
    assert served_receipts("dfer", ADDRESS, ENSEMBLE) == {"head_receipt": ("frame_features", "logits")}
    assert served_model("dfer", ADDRESS, ENSEMBLE).num_classes == 2


@pytest.mark.parametrize("parameters", [{}, {"head_receipt": {}}, {"head_receipt": None}, None])
def test_a_receipt_without_its_tensors_is_of_another_version(parameters: Any) -> None:
    with pytest.raises(IncompatibleServerError):
        served_receipts("dfer", ADDRESS, ENSEMBLE | {"parameters": parameters})
