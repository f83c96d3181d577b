"""What a stream sends and remembers; the server is scripted, so that every step can be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_server import SIZE, STREAM_CONFIG, Script, connected

from dfer_deploy.answers.clip_answers import StreamAnswer
from dfer_deploy.client.calls import Call, Infer, ReadConfig
from dfer_deploy.client.retry_policy import RetryPolicy
from dfer_deploy.client.streams import StreamRequests
from dfer_deploy.errors import (
    CallError,
    ClipError,
    DeadlineExceededError,
    IncompatibleServerError,
    MixedServersError,
    QueueFullError,
    ServerUnavailableError,
    SettingError,
)


def frame(number: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), number, np.uint8)


def failing(numbers: set[int], kind: Any) -> Script:
    def fail(number: int, call: Infer) -> None:
        if number in numbers:
            raise kind("it failed")

    return Script(fail)


def pushed(script: Script, stream: StreamRequests, numbers: range) -> list[StreamAnswer]:
    return [script(stream.push(frame(number))) for number in numbers]


def check(answer: StreamAnswer, last: int, encoder: int = 1) -> None:
    """The answer is the one for the window that ends with frame ``last``, all of it encoded by ``encoder``."""
    window = [max(0, number) for number in range(last - 15, last + 1) if number >= 0]
    window += [last] * (16 - len(window))
    assert list(answer.logits.values()) == [encoder * sum(window) / 16, encoder]
    assert answer.frames == min(16, last + 1)


def test_a_stream_sends_each_frame_once_and_remembers_fifteen() -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    for number, answer in enumerate(pushed(script, stream, range(40))):
        check(answer, number)
        assert not answer.resumed
    assert [int(call.inputs["frames"].flat[0]) for call in script.infers] == list(range(40))
    last = script.infers[-1]
    assert {name: (array.shape, array.dtype) for name, array in last.inputs.items()} == {
        "recent_features": ((1, 15, 2), np.float32),
        "recent_count": ((1, 1), np.int32),
        "frames": ((1, 1, SIZE, SIZE, 3), np.uint8),
    }
    assert last.inputs["recent_features"][0, :, 0].tolist() == list(range(24, 39))
    assert sum(isinstance(call, ReadConfig) for call in script.calls) == 2


def test_encoded_images_and_frames_may_alternate(tmp_path: Any) -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    path = tmp_path / "image"
    path.write_bytes(bytes([2]))
    pushed(script, stream, range(1))
    script(stream.push(bytearray([1])))
    check(script(stream.push(path)), 2)
    check(script(stream.push(frame(3))), 3)
    assert [call.model for call in script.infers] == ["dfer_stream", *["dfer_encoded_stream"] * 2, "dfer_stream"]
    script.encoder = lambda number: 7
    check(script(stream.push(frame(4))), 4, encoder=7)
    again = [call for call in script.infers[7:-1] if not call.inputs["recent_count"].any()]
    assert ["images" in call.inputs for call in again] == [False, True, True, False]


@pytest.mark.parametrize("kind", [ServerUnavailableError, QueueFullError])
def test_a_request_that_failed_is_sent_again_as_it_was(kind: Any) -> None:
    script = failing({3, 5, 6}, kind)
    stream = StreamRequests(connected(script))
    for number, answer in enumerate(pushed(script, stream, range(5))):
        check(answer, number)
        assert not answer.resumed
    assert [int(call.inputs["frames"].flat[0]) for call in script.infers] == [0, 1, 2, 2, 3, 3, 3, 4]


@pytest.mark.parametrize("kind", CallError.__subclasses__())
@pytest.mark.parametrize("following", [2, 7])
def test_a_failed_push_leaves_the_stream_as_it_was(kind: Any, following: int) -> None:
    script = failing(set(range(3, 100)), kind)
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(2))
    with pytest.raises(CallError):
        script(stream.push(frame(2)))
    script.fail = None
    answer = script(stream.push(frame(following)))
    assert (answer.frames, answer.resumed) == (3, False)
    assert next(iter(answer.logits.values())) == (0 + 1 + 14 * following) / 16


def test_a_push_is_not_tried_for_ever() -> None:
    script = failing(set(range(2, 100)), ServerUnavailableError)
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(1))
    with pytest.raises(CallError):
        script(stream.push(frame(1)))
    assert len(script.infers) == 1 + 1 + 3


@pytest.mark.parametrize("before", [1, 7, 40])
def test_another_encoder_encodes_the_window_again(before: int) -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(before))
    script.encoder = lambda number: 9
    answer = script(stream.push(frame(before)))
    check(answer, before, encoder=9)
    assert answer.resumed
    (following,) = pushed(script, stream, range(before + 1, before + 2))
    check(following, before + 1, encoder=9)
    assert not following.resumed


def test_servers_of_two_versions_in_turn_give_no_mixed_answer() -> None:
    """As behind a balancer during a rollout: whoever answers, all features of an answer are of one encoder."""
    at_random = np.random.default_rng(0).integers(1, 4, 10_000).tolist()
    for order in ((1, 2), (1, 1, 2), (1, 2, 3), at_random):
        script = Script(encoder=lambda number, order=order: order[number % len(order)])
        stream = StreamRequests(connected(script, retries=20))
        for number in range(30):
            answer = script(stream.push(frame(number)))
            check(answer, number, encoder=round(list(answer.logits.values())[1]))


def test_a_window_whose_parts_two_encoders_made_is_not_used() -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(20))
    # The old encoder is gone; while the window is encoded, one of its requests is answered by a third.
    script.encoder = lambda number: 3 if number == 25 else 2
    answer = script(stream.push(frame(20)))
    check(answer, 20, encoder=2)
    assert answer.resumed


def test_servers_that_never_agree_are_an_error_and_not_asked_for_ever() -> None:
    script = Script(encoder=lambda number: number)
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(1))
    with pytest.raises(
        MixedServersError, match="servers of different weights answer at grpc://host:1 in turn"
    ) as mixed:
        script(stream.push(frame(1)))
    assert mixed.value.retryable
    assert len(script.infers) < 30
    script.encoder = lambda number: 5
    check(script(stream.push(frame(1))), 1, encoder=5)


def test_a_cancelled_push_leaves_the_stream_as_it_was() -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(3))
    cancelled = stream.push(frame(3))
    next(cancelled)
    cancelled.close()
    check(script(stream.push(frame(3))), 3)


def test_two_pushes_at_the_same_time_are_refused() -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(1))
    first = stream.push(frame(1))
    next(first)
    with pytest.raises(ClipError, match="one frame after the other"):
        script(stream.push(frame(2)))
    first.close()
    assert script(stream.push(frame(1))).frames == 2


def test_a_closed_stream_takes_no_frame_and_asks_nobody() -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(2))
    asked = len(script.calls)
    for _ in range(2):
        stream.close()
    with pytest.raises(SettingError, match="the stream is closed"):
        script(stream.push(frame(2)))
    assert len(script.calls) == asked


@pytest.mark.parametrize(
    "given",
    [
        *([1], 3, None, frame(1).astype(np.float32), frame(1)[:4], frame(1)[np.newaxis]),
        *("/no/such/image.png", "a\0b", "", bytes(17 << 20)),
    ],
    ids=["list", "number", "nothing", "dtype", "size", "batch", "no file", "null", "folder", "too large"],
)
def test_what_is_no_frame_is_refused_and_not_sent(given: Any) -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    with pytest.raises(ClipError):
        script(stream.push(given))
    assert script.infers == []
    check(script(stream.push(frame(0))), 0)


def test_the_callers_array_may_be_written_again() -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    image = frame(0)
    for number in range(3):
        image[:] = number
        script(stream.push(image))
    script.encoder = lambda number: 2
    image[:] = 3
    check(script(stream.push(image)), 3, encoder=2)


@pytest.mark.parametrize(
    "inputs", [STREAM_CONFIG["input"][:1], [], None, 5], ids=["of 0.1", "none", "absent", "broken"]
)
def test_a_server_that_keeps_the_state_of_streams_is_of_another_version(inputs: Any) -> None:
    class Old(Script):
        def _answer(self, call: Call) -> Any:
            if isinstance(call, ReadConfig) and call.model == "dfer_stream":
                return {"name": "dfer_stream", "input": inputs}
            return super()._answer(call)

    script = Old()
    stream = StreamRequests(connected(script))
    with pytest.raises(IncompatibleServerError, match="export the checkpoint again"):
        script(stream.push(frame(0)))
    assert script.infers == []


@pytest.mark.parametrize("output", range(4))
@pytest.mark.parametrize("change", [lambda array: array[..., :-1], lambda array: array.astype(np.float64)])
def test_a_server_answer_of_another_shape_is_refused(output: int, change: Any) -> None:
    class Wrong(Script):
        def _streamed(self, call: Infer) -> list[Any]:
            arrays = super()._streamed(call)
            arrays[output] = change(arrays[output])
            return arrays

    script = Wrong()
    with pytest.raises(
        IncompatibleServerError, match=("logits", "probabilities", "frame_features", "encoder_id")[output]
    ):
        script(StreamRequests(connected(script)).push(frame(0)))


def test_one_deadline_holds_for_all_requests_of_a_push_and_the_next_push_goes_on_from_there() -> None:
    """A window that is encoded again takes 18 requests; what they brought is not lost where the time was too short."""
    now = [0.0]

    class Slow(Script):
        def _answer(self, call: Call) -> Any:
            now[0] += 0.15
            if self.timeouts[-1] < 0.15:
                raise DeadlineExceededError("too late")
            return super()._answer(call)

    script = Slow()
    requests = connected(script)
    requests._policy = RetryPolicy(2, 20, clock=lambda: now[0])
    stream = StreamRequests(requests)
    pushed(script, stream, range(20))
    script.encoder = lambda number: 2
    with pytest.raises(CallError) as late:
        script(stream.push(frame(20)))
    assert late.value.code == "deadline_exceeded"
    answer = script(stream.push(frame(20)))
    check(answer, 20, encoder=2)
    assert answer.resumed


def test_after_a_rollout_the_class_names_are_those_of_the_new_server() -> None:
    class Renamed(Script):
        names = ("calm", "anger: loud")

        def _answer(self, call: Call) -> Any:
            answer = super()._answer(call)
            if isinstance(call, Infer) and call.class_count:
                return [np.array([[f"0.5:{k}:{name}".encode() for k, name in enumerate(self.names)]], object)]
            return answer

    script = Renamed()
    stream = StreamRequests(connected(script))
    assert list(pushed(script, stream, range(2))[-1].logits) == ["calm", "anger: loud"]
    script.encoder, Renamed.names = lambda number: 2, ("anger: loud", "calm")
    other = StreamRequests(stream._requests)  # a new stream has nothing to resume
    for number in (2, 3):
        assert list(script(other.push(frame(number))).logits) == ["anger: loud", "calm"]
    assert list(script(stream.push(frame(2))).logits) == ["anger: loud", "calm"]
    asked = sum(isinstance(call, Infer) and call.class_count > 0 for call in script.calls)
    assert asked == 2, "once for each encoder"


def test_where_the_features_of_two_encoders_are_known_the_last_answers_is_asked_first() -> None:
    script = Script()
    stream = StreamRequests(connected(script))
    pushed(script, stream, range(3))
    script.encoder = lambda number: 2
    script(stream.push(frame(3)))
    for remembered in stream._recent:
        remembered.features.update({1: remembered.features.get(2), 2: remembered.features[2]})
    before = len(script.infers)
    check(script(stream.push(frame(4))), 4, encoder=2)
    assert len(script.infers) == before + 1


def test_a_stream_that_is_closed_while_a_push_waits_keeps_nothing() -> None:
    class Closing(Script):
        def _streamed(self, call: Infer) -> list[Any]:
            if len(self.infers) == 3:
                stream.close()
            return super()._streamed(call)

    script = Closing()
    stream = StreamRequests(connected(script))
    check(pushed(script, stream, range(3))[-1], 2)
    assert stream._recent == ()
