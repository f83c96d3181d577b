"""What is sent; the server is scripted, so that every step can be seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_server import CONFIG, LABELS, SIZE, STREAM_CONFIG, Script, connected

from dfer_deploy.client.calls import GRPC_LAG_S, Call, Infer, ReadConfig
from dfer_deploy.client.request_steps import ModelRequests
from dfer_deploy.client.retry_policy import CONNECT_RETRIES, RetryPolicy
from dfer_deploy.client.served_model import served_model
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.errors import (
    CallError,
    ClipError,
    IncompatibleServerError,
    ModelNotFoundError,
    ServerUnavailableError,
    SettingError,
)
from dfer_deploy.specs import MAX_IMAGE_BYTES
from dfer_deploy.triton.address import parse_url


def clip(frames: int, batch: int | None = None) -> np.ndarray:
    shape = (frames, SIZE, SIZE, 3) if batch is None else (batch, frames, SIZE, SIZE, 3)
    return np.random.default_rng(frames).integers(0, 256, shape, dtype=np.uint8)


def test_the_model_is_read_from_the_servers_configuration() -> None:
    model = connected(Script()).model
    assert (model.image_encoder, model.temporal_head) == ("dfer_image_encoder", "dfer_temporal_head")
    assert (model.image_size, model.num_classes, model.max_batch_size, model.frame_interval_s) == (SIZE, 2, 4, 0.175)
    assert model.graphs_sha256 is None
    told = {f"{graph}_sha256": {"string_value": graph[0]} for graph in ("image_encoder", "temporal_head")}
    again = served_model("dfer", parse_url("grpc://h:1"), CONFIG | {"parameters": told})
    assert (again.graphs_sha256, again.frame_interval_s) == (("i", "t"), None)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("dfer", [], "the configuration of the model 'dfer' at grpc://h:1 cannot be read (AttributeError"),
        ("dfer", {"ensemble_scheduling": CONFIG["ensemble_scheduling"]}, "cannot be read (KeyError: 'input')"),
        (
            "dfer",
            CONFIG | {"parameters": {"frame_interval_s": {"string_value": "often"}}},
            "cannot be read (ValueError: could not convert string to float: 'often')",
        ),
        (
            "dfer_encoded",
            CONFIG | {"input": [{"name": "images", "dims": ["-1"]}], "ensemble_scheduling": {"step": [{}] * 3}},
            "the model 'dfer_encoded' at grpc://h:1 is not an ensemble from the frames of a clip; give 'dfer', which",
        ),
        (
            "dfer_stream",
            CONFIG | STREAM_CONFIG | {"ensemble_scheduling": {"step": [{}] * 3}},
            "is not an ensemble from the frames of a clip; give 'dfer', which",
        ),
        (
            "dfer_encoded_stream",
            CONFIG
            | STREAM_CONFIG
            | {
                "input": [{"name": "images", "dims": ["1"]}, *STREAM_CONFIG["input"][1:]],
                "ensemble_scheduling": {"step": [{}] * 4},
            },
            "is not an ensemble from the frames of a clip; give 'dfer', which",
        ),
        ("other", CONFIG | {"ensemble_scheduling": {"step": [{}] * 3}}, "of a clip; give the name of one"),
    ],
)
def test_another_configuration_is_refused(name: str, config: Any, said: str) -> None:
    with pytest.raises(IncompatibleServerError, match=re.escape(said)):
        connect_to(name, config)


def test_the_name_of_a_step_is_a_wrong_setting() -> None:
    said = "the model 'dfer_image_encoder' at grpc://h:1 is not an ensemble; give the ensemble's"
    with pytest.raises(SettingError, match=said):
        connect_to("dfer_image_encoder", {})


def connect_to(name: str, config: Any) -> None:
    class Other(Script):
        def _answer(self, call: Call) -> Any:
            assert isinstance(call, ReadConfig)
            return call.response(config)

    Other()(ModelRequests(parse_url("h:1"), name, RetryPolicy(60, 0)).connect())


@pytest.mark.parametrize("frames", [1, 9, 16, 17, 70])
def test_always_16_frames_are_sent(frames: int) -> None:
    script = Script()
    answer = script(connected(script).answer(clip(frames)))
    (call,) = script.infers
    assert np.array_equal(call.inputs["frames"], clip(frames)[sample_indices(frames)][np.newaxis])
    assert (answer.expression, answer.confidence) == ("anger: loud", 0.75)
    assert answer.probabilities == dict(zip(LABELS, (0.25, 0.75), strict=True))
    assert answer.logits == dict(zip(LABELS, (1, 3), strict=True))


def test_a_batch_is_split_and_gives_a_list() -> None:
    script = Script()
    answers = script(connected(script).answer(clip(3, batch=9)))
    assert len(answers) == 9
    assert [len(call.inputs["frames"]) for call in script.infers] == [4, 4, 1]


def test_http_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer_deploy.client.request_steps.MAX_HTTP_REQUEST_BYTES", 2 * 16 * SIZE * SIZE * 3)
    for url, sizes in (("http://host:1", [2, 2, 1]), ("grpc://host:1", [4, 1])):
        script = Script()
        assert len(script(connected(script, url).answer(clip(3, batch=5)))) == 5
        assert [len(call.inputs["frames"]) for call in script.infers] == sizes


def test_connecting_is_tried_less_often_than_asking() -> None:
    class Away(Script):
        def _answer(self, call: Call) -> Any:
            self.calls.append(call)
            raise ServerUnavailableError("away")

    script = Away()
    with pytest.raises(CallError):
        script(ModelRequests(parse_url("h:1"), "dfer", RetryPolicy(60, 1000)).connect())
    assert len(script.calls) == 1 + CONNECT_RETRIES


def test_encoded_images_are_padded_and_read_from_files(tmp_path: Path) -> None:
    script = Script()
    (tmp_path / "a.jpg").write_bytes(b"from a file")
    script(connected(script).answer([b"bytes", tmp_path / "a.jpg", str(tmp_path / "a.jpg")]))
    (call,) = script.infers
    assert (call.model, call.inputs["images"].shape) == ("dfer_encoded", (1, 16))
    assert call.inputs["images"][0].tolist() == [b"bytes", *[b"from a file"] * 15]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (clip(16).astype(np.float32), "the dtype float32, expected uint8 [T, 8, 8, 3]"),
        (clip(16)[:, :4], "the shape [16, 4, 8, 3]"),
        (clip(16)[0], "the shape [8, 8, 3]"),
        (clip(16)[:0], "cannot take 16 frames of a clip of 0"),
        (clip(16, batch=1)[:0], "holds no clip"),
        ([], "cannot take 16 frames of a clip of 0"),
        ("a.jpg", "expected a list of images"),
        (["/no/such.jpg"], "the image '/no/such.jpg' cannot be read"),
        (None, "the clip is a NoneType, expected an array or a list of encoded images"),
        (list(clip(16)), "the image is of the type ndarray, expected the bytes or the path"),
        ([bytes(MAX_IMAGE_BYTES + 1)], "the image is larger than 16 MiB"),
    ],
)
def test_what_is_no_clip_is_not_sent(given: Any, said: str) -> None:
    script = Script()
    with pytest.raises(ClipError) as refused:
        script(connected(script).answer(given))
    assert said in str(refused.value)
    assert script.infers == []


def test_a_list_is_no_array() -> None:
    script = Script()
    with pytest.raises(ClipError, match="frames is a list, expected a NumPy array"):
        script(connected(script).predict([1]))  # type: ignore[arg-type]


def test_inputs_are_sent_with_their_names_and_types() -> None:
    sent: list[tuple[str, list[int], str]] = []

    class Library:
        class InferInput:
            def __init__(self, name: str, shape: list[int], datatype: str) -> None:
                sent.append((name, shape, datatype))

            def set_data_from_numpy(self, array: np.ndarray) -> None:
                pass

        @staticmethod
        def InferRequestedOutput(name: str, class_count: int) -> str:  # noqa: N802 - tritonclient's name
            return name

    inputs = {
        "frames": np.zeros((2, 1, 8, 8, 3), np.uint8),
        "recent_features": np.zeros((2, 15, 2), np.float32),
        "recent_count": np.zeros((2, 1), np.int32),
        "images": np.zeros((2, 1), object),
    }
    method, arguments = Infer("dfer_stream", inputs, ("logits",)).request(Library, "grpc", 5.0)
    assert sent == [
        ("frames", [2, 1, 8, 8, 3], "UINT8"),
        ("recent_features", [2, 15, 2], "FP32"),
        ("recent_count", [2, 1], "INT32"),
        ("images", [2, 1], "BYTES"),
    ]
    assert (method, arguments["outputs"], arguments["client_timeout"]) == ("infer", ["logits"], 5.0 + GRPC_LAG_S)


def test_a_bundle_of_old_without_streams_is_said_to_be_one() -> None:
    class Older(Script):
        def _answer(self, call: Call) -> Any:
            if isinstance(call, ReadConfig) and call.model == "dfer_stream":
                raise ModelNotFoundError("no model")
            return super()._answer(call)

    script = Older()
    with pytest.raises(ModelNotFoundError, match="serve a bundle of this version"):
        script(connected(script).stream())
