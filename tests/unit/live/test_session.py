"""One stream for every face; the detector is scripted, the tracker is real."""

from __future__ import annotations

import numpy as np
import pytest

from dfer_deploy.answers.clip_answers import StreamAnswer
from dfer_deploy.clips.faces import Box, Detection, face_crop
from dfer_deploy.errors import SettingError
from dfer_deploy.live.session import FaceAnswer, LiveSession
from dfer_deploy.live.sources import LiveFrame

LEFT, RIGHT = Box(0, 0, 20, 20), Box(60, 10, 80, 30)


class Recorder:
    """A stream that remembers what was pushed."""

    def __init__(self, others: int = 0) -> None:
        self.others_open = others
        self.frames: list[np.ndarray] = []
        self.closed = False

    def push(self, frame: np.ndarray) -> StreamAnswer:
        assert not self.closed
        self.frames.append(frame)
        return StreamAnswer("calm", 1.0, {"calm": 1.0}, {"calm": 0.0}, frames=len(self.frames))

    def close(self) -> None:
        self.closed = True


class Scripted:
    def __init__(self, *boxes: tuple[Box, ...]) -> None:
        self._boxes = iter(boxes)

    def detect(self, image: np.ndarray) -> list[Detection]:
        return [Detection(box, 0.9) for box in next(self._boxes)]


def image_at(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (40, 100, 3), dtype=np.uint8)


def run(
    detector: Scripted | None, frames: int, step_s: float = 0.2, interval_s: float = 0.2
) -> tuple[list[Recorder], list[list[FaceAnswer]]]:
    streams: list[Recorder] = []

    def new_stream() -> Recorder:
        streams.append(Recorder(sum(not stream.closed for stream in streams)))
        return streams[-1]

    with LiveSession(new_stream, 8, detector, margin=0.1, interval_s=interval_s) as session:
        answers = [session.answered(LiveFrame(step_s * index, 0.0, image_at(index))) for index in range(frames)]
    return streams, answers


def test_every_face_has_a_stream_of_its_own() -> None:
    streams, answers = run(Scripted((LEFT,), (LEFT, RIGHT), (LEFT, RIGHT)), 3)
    assert [len(stream.frames) for stream in streams] == [3, 2]
    assert [[face.track for face in faces] for faces in answers] == [[1], [1, 2], [1, 2]]
    box = answers[2][1].box
    assert box is not None
    assert np.array_equal(streams[1].frames[1], face_crop(image_at(2), box, 8, margin=0.1))
    assert all(stream.closed for stream in streams)


def test_frames_of_a_gap_are_pushed_when_the_face_is_found_again() -> None:
    streams, answers = run(Scripted((LEFT,), (), (), (LEFT,)), 4)
    assert [faces[0].answer is not None for faces in answers] == [True, False, False, True]
    (stream,) = streams
    assert len(stream.frames) == 4


def test_a_face_that_left_ends_its_stream_and_comes_back_as_another() -> None:
    streams, answers = run(Scripted((LEFT,), *[()] * 8, (LEFT,)), 10)
    assert [len(stream.frames) for stream in streams] == [1, 1]
    assert answers[8] == []
    assert streams[1].others_open == 0
    assert answers[9][0].track == 2


@pytest.mark.parametrize("step_s", [0.8, 5.0, 3600.0])
def test_a_face_goes_on_however_long_its_answers_take(step_s: float) -> None:
    streams, answers = run(Scripted((LEFT,), (LEFT,), (), (), (LEFT,)), 5, step_s)
    assert [len(stream.frames) for stream in streams] == [5]
    assert [faces[0].track for faces in answers] == [1] * 5


def test_frames_that_come_quickly_are_not_slowed_down() -> None:
    streams, _ = run(Scripted((LEFT,), *[()] * 12, (LEFT,)), 14, step_s=0.05)
    assert [len(stream.frames) for stream in streams] == [14]


def test_a_moving_face_is_found_again_after_a_pause() -> None:
    boxes = [Box(2 * index, 0, 20 + 2 * index, 20) for index in range(12)]
    streams: list[Recorder] = []

    def new_stream() -> Recorder:
        streams.append(Recorder())
        return streams[-1]

    with LiveSession(new_stream, 8, Scripted(*((box,) for box in boxes)), margin=0.1, interval_s=0.2) as session:
        for index in range(12):
            pause_s = 0 if index < 6 else 30
            session.answered(LiveFrame(0.2 * index + pause_s, 0.0, image_at(index)))
    assert [len(stream.frames) for stream in streams] == [12]


def test_an_answer_tells_where_its_window_begins() -> None:
    _, answers = run(Scripted(*[(LEFT,)] * 20), 20)
    assert [answer.start_s for (answer,) in answers] == [0.2 * max(0, index - 15) for index in range(20)]
    _, answers = run(None, 3, step_s=13.5)
    assert [answer.start_s for (answer,) in answers] == [0.0, 0.0, 0.0]


def test_a_face_is_not_held_longer_than_in_a_video_where_the_interval_is_long() -> None:
    streams, _ = run(Scripted((LEFT,), (), (), (LEFT,)), 4, step_s=0.6, interval_s=0.6)
    assert [len(stream.frames) for stream in streams] == [1, 1]


def test_a_face_that_is_gone_after_slow_answers_is_another_one() -> None:
    streams, answers = run(Scripted((LEFT,), *[()] * 4, (LEFT,)), 6, 2.0)
    assert [len(stream.frames) for stream in streams] == [1, 1]
    assert answers[5][0].track == 2


@pytest.mark.parametrize("margin", [-0.6, 2.1, float("nan")])
def test_margins_out_of_range(margin: float) -> None:
    with pytest.raises(SettingError, match="expected 0 to 2"):
        LiveSession(Recorder, 8, None, margin=margin, interval_s=0.2)


def test_without_a_detector_the_whole_picture_is_the_face() -> None:
    streams, answers = run(None, 2)
    assert [frame.shape for frame in streams[0].frames] == [(8, 8, 3)] * 2
    assert (answers[0][0].track, answers[0][0].box) == (0, None)


def test_faces_cannot_be_followed_in_large_steps() -> None:
    with pytest.raises(SettingError, match="faces are followed in steps of at most"):
        LiveSession(Recorder, 8, Scripted(), margin=0.1, interval_s=3)
