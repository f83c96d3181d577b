"""What is sent; the server is scripted, so that every step can be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_deploy.client.address import parse_url
from dfer_deploy.client.calls import Call, Flow, Infer, ListModels, Pause, Position, ReadConfig
from dfer_deploy.client.failures import CallError
from dfer_deploy.client.flows import Flows
from dfer_deploy.client.patience import CONNECT_RETRIES, Patience
from dfer_deploy.client.served_model import served_model
from dfer_deploy.client.streams import END_TIMEOUT_S, StreamFlows
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.errors import DferDeployError, NoPlaceError
from dfer_deploy.specs import MAX_IMAGE_BYTES

SIZE, LABELS = 8, ("calm", "anger: loud")
CONFIG = {
    "name": "dfer",
    "max_batch_size": 4,
    "input": [{"name": "frames", "dims": ["-1", "8", "8", "3"]}],
    "output": [{"name": "probabilities", "dims": ["2"]}, {"name": "logits", "dims": ["2"]}],
    "ensemble_scheduling": {"step": [{"model_name": "dfer_image_encoder"}, {"model_name": "dfer_temporal_head"}]},
    "parameters": {"frame_interval_s": {"string_value": "0.175"}},
}


class Script:
    """A server as a function of calls, with the calls that it got."""

    def __init__(self, fail: Callable[[int, Infer], None] | None = None) -> None:
        self.calls: list[Call] = []
        self.timeouts: list[float] = []
        self._fail = fail

    def __call__(self, flow: Flow[Any]) -> Any:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    step = flow.send(None)
                    continue
                self.timeouts.append(step.timeout_s)
                try:
                    answer = self._answer(step.call)
                except CallError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as done:
            return done.value

    @property
    def infers(self) -> list[Infer]:
        return [call for call in self.calls if isinstance(call, Infer) and not call.class_count]

    def _answer(self, call: Call) -> Any:
        self.calls.append(call)
        assert len(self.calls) < 1000, "it asks for ever"
        if isinstance(call, ReadConfig):
            return CONFIG
        if isinstance(call, ListModels):
            raise CallError("restricted", "refused")
        assert isinstance(call, Infer)
        if call.class_count:
            return [np.array([[b"0.9:1:anger: loud", b"0.1:0:calm"]], object)]
        if self._fail:
            self._fail(len(self.infers), call)
        values = np.tile(np.array([[1, 3]], np.float32), (len(call.array), 1))
        return [values, values / 4]


def connected(script: Script, url: str = "grpc://host:1") -> Flows:
    flows = Flows(parse_url(url), "dfer", Patience(60, 3))
    script(flows.connect())
    return flows


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
        ("dfer_image_encoder", {}, "the model 'dfer_image_encoder' at grpc://h:1 is no ensemble; give the ensemble's"),
        (
            "dfer_encoded",
            CONFIG | {"input": [{"name": "images", "dims": ["-1"]}], "ensemble_scheduling": {"step": [{}] * 3}},
            "the model 'dfer_encoded' at grpc://h:1 is no ensemble from the frames of a clip; give 'dfer', which",
        ),
        (
            "dfer_stream",
            CONFIG | {"input": [{"name": "frames", "dims": ["1", "8", "8", "3"]}]},
            "is no ensemble from the frames of a clip; give 'dfer', which",
        ),
        ("other", CONFIG | {"ensemble_scheduling": {"step": [{}] * 3}}, "of a clip; give the name of one"),
    ],
)
def test_another_configuration_is_refused(name: str, config: Any, said: str) -> None:
    class Other(Script):
        def _answer(self, call: Call) -> Any:
            assert isinstance(call, ReadConfig)
            return call.reply(config)

    with pytest.raises(DferDeployError) as refused:
        Other()(Flows(parse_url("h:1"), name, Patience(60, 0)).connect())
    assert said in str(refused.value)


@pytest.mark.parametrize("frames", [1, 9, 16, 17, 70])
def test_always_16_frames_are_sent(frames: int) -> None:
    script = Script()
    answer = script(connected(script).answer(clip(frames)))
    (call,) = script.infers
    assert np.array_equal(call.array, clip(frames)[sample_indices(frames)][np.newaxis])
    assert (answer.expression, answer.confidence) == ("anger: loud", 0.75)
    assert answer.probabilities == dict(zip(LABELS, (0.25, 0.75), strict=True))
    assert answer.logits == dict(zip(LABELS, (1, 3), strict=True))


def test_a_batch_is_split_and_gives_a_list() -> None:
    script = Script()
    answers = script(connected(script).answer(clip(3, batch=9)))
    assert len(answers) == 9
    assert [len(call.array) for call in script.infers] == [4, 4, 1]


def test_http_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer_deploy.client.flows.MAX_HTTP_REQUEST_BYTES", 2 * 16 * SIZE * SIZE * 3)
    for url, sizes in (("http://host:1", [2, 2, 1]), ("grpc://host:1", [4, 1])):
        script = Script()
        assert len(script(connected(script, url).answer(clip(3, batch=5)))) == 5
        assert [len(call.array) for call in script.infers] == sizes


def test_connecting_is_tried_less_often_than_asking() -> None:
    class Away(Script):
        def _answer(self, call: Call) -> Any:
            self.calls.append(call)
            raise CallError("away", "unreachable")

    script = Away()
    with pytest.raises(CallError):
        script(Flows(parse_url("h:1"), "dfer", Patience(60, 1000)).connect())
    assert len(script.calls) == 1 + CONNECT_RETRIES


def test_encoded_images_are_padded_and_read_from_files(tmp_path: Path) -> None:
    script = Script()
    (tmp_path / "a.jpg").write_bytes(b"from a file")
    script(connected(script).answer([b"bytes", tmp_path / "a.jpg", str(tmp_path / "a.jpg")]))
    (call,) = script.infers
    assert (call.model, call.name, call.array.shape) == ("dfer_encoded", "images", (1, 16))
    assert call.array[0].tolist() == [b"bytes", *[b"from a file"] * 15]


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
        (["/no/such.jpg"], "/no/such.jpg cannot be read"),
        (None, "the clip is a NoneType, expected an array or a list of encoded images"),
        (list(clip(16)), "an image of the clip is a ndarray, expected the bytes or the path"),
        ([bytes(MAX_IMAGE_BYTES + 1)], "an image of the clip is larger than 16 MiB"),
    ],
)
def test_what_is_no_clip_is_not_sent(given: Any, said: str) -> None:
    script = Script()
    with pytest.raises(DferDeployError) as refused:
        script(connected(script).answer(given))
    assert said in str(refused.value)
    assert script.infers == []


def test_a_list_is_no_array() -> None:
    script = Script()
    with pytest.raises(DferDeployError, match="frames is a list, expected a NumPy array"):
        script(connected(script).predict([1]))  # type: ignore[arg-type]


def failing(numbers: set[int], kind: Any) -> Script:
    def fail(number: int, call: Infer) -> None:
        if number in numbers:
            raise CallError("it failed", kind)

    return Script(fail)


def sent(script: Script) -> list[tuple[int, bool, bool]]:
    """The first pixel (the frame's number), START and END of every inference."""
    calls = [(call, call.position) for call in script.infers]
    return [(int(call.array.flat[0]), place.start, place.end) for call, place in calls if place]


def frame(number: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), number, np.uint8)


def test_a_stream_starts_goes_on_and_ends() -> None:
    script = Script()
    stream = StreamFlows(connected(script))
    answers = [script(stream.push(frame(number))) for number in range(18)]
    script(stream.end())
    script(stream.end())
    assert sent(script) == [(0, True, False), *[(n, False, False) for n in range(1, 18)], (0, False, True)]
    assert [answer.frames for answer in answers] == [*range(1, 17), 16, 16]
    assert not any(answer.resumed for answer in answers)
    assert len({call.position.correlation_id for call in script.infers if call.position}) == 1
    assert script.infers[0].array.shape == (1, 1, SIZE, SIZE, 3)
    assert script.timeouts[-1] == pytest.approx(END_TIMEOUT_S, abs=1)
    assert script.timeouts[-2] > 50


@pytest.mark.parametrize("kind", ["unreachable", "refused"])
def test_a_lost_stream_is_opened_again_with_its_window(kind: Any) -> None:
    script = failing({20}, kind)
    stream = StreamFlows(connected(script))
    answers = [script(stream.push(frame(number))) for number in range(21)]
    assert sent(script)[19:] == [
        (19, False, False),
        (0, False, True),
        (4, True, False),
        *[(number, False, False) for number in range(5, 20)],
        (20, False, False),
    ]
    assert [answer.resumed for answer in answers] == [False] * 19 + [True, False]
    first, again = script.infers[19].position, script.infers[21].position
    assert first and again and first.correlation_id != again.correlation_id


def test_a_full_queue_changes_nothing_of_the_stream() -> None:
    script = failing({3}, "full")
    stream = StreamFlows(connected(script))
    answers = [script(stream.push(frame(number))) for number in range(4)]
    assert sent(script) == [
        (0, True, False),
        (1, False, False),
        (2, False, False),
        (2, False, False),
        (3, False, False),
    ]
    assert not any(answer.resumed for answer in answers)


@pytest.mark.parametrize("kind", ["late", "refused", "unreachable", "full", "crowded"])
@pytest.mark.parametrize("following", [2, 7])
def test_a_failed_push_leaves_the_stream_as_it_was(kind: Any, following: int) -> None:
    script = failing(set(range(3, 100)), kind)
    stream = StreamFlows(connected(script))
    for number in range(2):
        script(stream.push(frame(number)))
    with pytest.raises(NoPlaceError if kind == "crowded" else CallError):
        script(stream.push(frame(2)))
    script._fail = None
    start = len(script.infers)
    answer = script(stream.push(frame(following)))
    assert answer.frames == 3
    again = [(0, False, True), (0, True, False), (1, False, False)] if kind != "full" else []
    assert sent(script)[start:] == [*again, (following, False, False)]
    assert answer.resumed == (kind != "full")


@pytest.mark.parametrize("kind", ["unreachable", "full"])
def test_a_push_is_not_tried_for_ever(kind: Any) -> None:
    script = failing(set(range(2, 100)), kind)
    stream = StreamFlows(connected(script))
    script(stream.push(frame(0)))
    with pytest.raises(CallError):
        script(stream.push(frame(1)))
    assert len(script.infers) == 1 + 1 + 3


def test_a_cancelled_push_leaves_the_stream_as_it_was() -> None:
    script = Script()
    stream = StreamFlows(connected(script))
    for number in range(3):
        script(stream.push(frame(number)))
    cancelled = stream.push(frame(3))
    next(cancelled)
    cancelled.close()
    answer = script(stream.push(frame(4)))
    assert (answer.frames, answer.resumed) == (4, True)
    assert [number for number, _, _ in sent(script)[3:]] == [0, 0, 1, 2, 4]


def test_two_pushes_at_the_same_time_are_refused() -> None:
    script = Script()
    stream = StreamFlows(connected(script))
    script(stream.push(frame(0)))
    first = stream.push(frame(1))
    next(first)
    with pytest.raises(DferDeployError, match="one frame after the other"):
        script(stream.push(frame(2)))
    first.close()
    assert script(stream.push(frame(1))).frames == 2


def test_a_resumption_that_fails_midway_leaves_no_sequence_behind() -> None:
    script = failing({4, 8}, "unreachable")
    stream = StreamFlows(connected(script))
    for number in range(4):
        script(stream.push(frame(number)))
    script(stream.end())
    calls = [(call.position.correlation_id, call.position) for call in script.infers if call.position]
    begun = {name for name, place in calls if place.start}
    assert len(begun) == 3
    assert begun == {name for name, place in calls if place.end}


def test_a_sequence_that_is_gone_need_not_end() -> None:
    script = failing({3, 4}, "refused")
    stream = StreamFlows(connected(script))
    answers = [script(stream.push(frame(number))) for number in range(3)]
    assert [answer.resumed for answer in answers] == [False, False, True]


def test_a_full_queue_is_waited_for_in_the_middle_of_a_resumption() -> None:
    def fail(number: int, call: Infer) -> None:
        if number in (4, 8):
            raise CallError("it failed", "unreachable" if number == 4 else "full")

    script = Script(fail)
    stream = StreamFlows(connected(script))
    for number in range(4):
        script(stream.push(frame(number)))
    assert [number for number, _, _ in sent(script)] == [0, 1, 2, 3, 0, 0, 1, 2, 2, 3]


def test_a_closed_stream_takes_no_frame() -> None:
    script = Script()
    stream = StreamFlows(connected(script))
    script(stream.push(frame(0)))
    script(stream.end())
    with pytest.raises(DferDeployError, match="the stream is closed"):
        script(stream.push(frame(1)))
    assert len(script.infers) == 2


@pytest.mark.parametrize("kind", ["refused", "unreachable", "full"])
def test_closing_waits_for_the_push_in_flight_which_then_opens_no_sequence(kind: Any) -> None:
    script = Script()
    stream = StreamFlows(connected(script))
    script(stream.push(frame(0)))
    pushing, ending = stream.push(frame(1)), stream.end()
    next(pushing)
    assert isinstance(next(ending), Pause)  # an END on its way could overtake the frame
    with pytest.raises(DferDeployError, match="the stream is closed"):
        step = pushing.throw(CallError("it failed", kind))
        while True:
            step = pushing.send(None if isinstance(step, Pause) else script._answer(step.call))
    script(ending)
    assert sent(script) == [(0, True, False), (0, False, True)]


def test_closing_does_not_wait_for_a_push_for_ever() -> None:
    time_s = iter(range(1000))
    script = Script()
    flows = connected(script)
    stream = StreamFlows(flows)
    script(stream.push(frame(0)))
    flows._patience = Patience(60, 0, clock=lambda: float(next(time_s)))
    next(stream.push(frame(1)))
    script(stream.end())
    assert sent(script)[-1] == (0, False, True)


@pytest.mark.parametrize("given", [None, [[1]], "a.jpg"])
def test_what_is_no_frame_is_refused(given: Any) -> None:
    script = Script()
    with pytest.raises(DferDeployError, match=r"the frame is a \w+, expected uint8 \[8, 8, 3\]"):
        script(StreamFlows(connected(script)).push(given))


def test_a_stream_that_is_refused_from_the_start_is_not_tried_again() -> None:
    script = failing({1, 2}, "refused")
    with pytest.raises(CallError):
        script(StreamFlows(connected(script)).push(frame(0)))
    assert len(script.infers) == 1


def test_the_callers_array_may_be_written_again() -> None:
    script = failing({2}, "unreachable")
    stream = StreamFlows(connected(script))
    image = frame(7)
    script(stream.push(image))
    image[:] = 9
    script(stream.push(image))
    assert [number for number, _, _ in sent(script)] == [7, 9, 0, 7, 9]


def test_a_frame_of_another_size_is_refused_before_it_is_in_the_window() -> None:
    script = Script()
    stream = StreamFlows(connected(script))
    with pytest.raises(DferDeployError, match=r"expected uint8 \[8, 8, 3\]"):
        script(stream.push(np.zeros((4, 4, 3), np.uint8)))
    assert script(stream.push(frame(0))).frames == 1


@pytest.mark.parametrize(("timeout_s", "server_us"), [(60.0, 59_000_000), (0.5, 450_000), (1e-7, 1)])
def test_the_server_gives_up_before_the_client_does(timeout_s: float, server_us: int) -> None:
    from tritonclient import grpc

    call = Infer("dfer_stream", "frames", clip(1)[np.newaxis], ("logits",), position=Position(7, start=True))
    arguments = call.request(grpc, "grpc", timeout_s)[1]
    assert arguments["timeout"] == server_us
    assert arguments["client_timeout"] == timeout_s


def test_only_a_streams_first_frame_waits_for_a_place() -> None:
    from tritonclient import grpc

    script = Script()
    stream = StreamFlows(connected(script), place_timeout_s=0.25)
    for number in range(2):
        script(stream.push(frame(number)))
    waits = [call.request(grpc, "grpc", 60.0)[1]["timeout"] for call in script.infers]
    assert waits == [250_000, 59_000_000]


@pytest.mark.parametrize("place_timeout_s", [0, -1, float("nan"), 1e9, "1"])
def test_waits_for_a_place_that_are_out_of_range(place_timeout_s: Any) -> None:
    with pytest.raises(DferDeployError, match=r"the timeout for a place is .* expected more than 0"):
        StreamFlows(connected(Script()), place_timeout_s)
