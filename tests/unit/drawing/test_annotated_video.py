import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from videos import SquareDetector, turn, two_squares, write_timed_video

from dfer_deploy.clips.faces import Box
from dfer_deploy.drawing.annotated_video import write_annotated
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.windows import Face, Window

LABELS = ("happiness", "sadness", "anger")


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def window(track: int, start_s: float, end_s: float, best: int) -> Window:
    probabilities = np.full(3, 0.05, np.float32)
    probabilities[best] = 0.9
    return Window(track, start_s, end_s, np.log(probabilities), probabilities, 16, 1.0, LABELS)


def bright(image: np.ndarray) -> np.ndarray:
    """Where something is drawn on the dark frame."""
    return image.max(axis=2) > 110


def test_every_frame_keeps_its_time_and_gets_its_box(tmp_path: Path) -> None:
    times_ms = [0, 100, 150, 400, 800, 900, 1000]
    frames = np.full((7, 96, 128, 3), 40, np.uint8)
    video = write_timed_video(tmp_path / "a.mkv", frames, times_ms)
    crop = np.zeros((4, 4, 3), np.uint8)
    recording = Recording(LABELS)
    recording.add_window(0, window(1, 0.0, 1.0, 0))
    # The box moves to the right by 40 pixels a second, and is gone after 0.8 s.
    for step in range(5):
        box = Box(10 + 8 * step, 50, 40 + 8 * step, 80)
        recording.add_box(0, step * 0.2, Face(1, crop, box=box))
    places: list[float] = []
    write_annotated(tmp_path / "b.mp4", video, recording, 0, 0.2, places.append)
    assert places == pytest.approx([ms / 1000 for ms in times_ms])
    written = decoded(tmp_path / "b.mp4")
    assert [time_s for time_s, _ in written] == pytest.approx([ms / 1000 for ms in times_ms], abs=0.002)
    assert written[0][1].shape == (360, 480, 3)  # 3.75 times as large
    for time_s, image in written:
        columns = np.nonzero(bright(image)[260:290].any(axis=0))[0]  # below the panel
        if time_s < 0.99:
            # Between the steps the box moves in a straight line; after the last it stands still.
            left = 3.75 * (10 + 40 * min(time_s, 0.8))
            assert columns.min() == pytest.approx(left, abs=4), time_s
        else:
            assert len(columns) == 0


def test_frames_of_one_time_follow_each_other(tmp_path: Path) -> None:
    frames = np.full((4, 96, 128, 3), 40, np.uint8)
    video = write_timed_video(tmp_path / "a.mkv", frames, [0, 100, 100, 200])
    recording = Recording(LABELS)
    write_annotated(tmp_path / "b.mp4", video, recording, 0, 0.2, lambda _: None)
    times = [time_s for time_s, _ in decoded(tmp_path / "b.mp4")]
    assert times == pytest.approx([0.0, 0.1, 0.1, 0.2], abs=0.002)
    assert times[1] < times[2]


def test_the_answer_at_a_time_is_drawn(tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mkv", np.full((20, 96, 128, 3), 40, np.uint8), range(0, 2000, 100))
    recording = Recording(LABELS)
    for found in (window(0, 0.0, 1.0, 0), window(0, 0.5, 2.0, 2)):
        recording.add_window(0, found)
    write_annotated(tmp_path / "b.mp4", video, recording, 0, 0.2, lambda _: None)
    images = [image for _, image in decoded(tmp_path / "b.mp4")]
    # The panel in the corner changes once, half way between the middles at 0.5 and 1.25 s.
    changes = [np.abs(a.astype(int) - b)[:100, :200].mean() > 1 for a, b in itertools.pairwise(images)]
    assert changes.index(True) == 8
    assert sum(changes) == 1


def test_a_frame_whose_time_was_rounded_down_has_the_boxes_of_its_step(tmp_path: Path) -> None:
    # Matroska writes 166 ms where 166.7 were meant; nobody is there before.
    video = write_timed_video(tmp_path / "a.mkv", np.full((3, 96, 128, 3), 40, np.uint8), [0, 166, 200])
    recording = Recording(LABELS)
    recording.add_window(0, window(1, 1 / 6, 1.0, 0))
    recording.add_box(0, 1 / 6, Face(1, np.zeros((4, 4, 3), np.uint8), box=Box(10, 50, 40, 80)))
    write_annotated(tmp_path / "b.mp4", video, recording, 0, 1 / 6, lambda _: None)
    assert [bool(bright(image).any()) for _, image in decoded(tmp_path / "b.mp4")] == [False, True, True]


def test_a_rotated_video_is_written_upright_with_boxes_at_their_places(tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mp4", two_squares(10, range(10), range(0)), range(0, 1000, 100), "mpeg4")
    turn(video)
    recording = Recording(LABELS)
    recording.add_window(0, window(1, 0.0, 1.0, 0))
    recording.add_box(0, 0.0, Face(1, np.zeros((4, 4, 3), np.uint8), box=Box(20, 40, 50, 70)))
    write_annotated(tmp_path / "b.mp4", video, recording, 0, 10.0, lambda _: None)
    image = decoded(tmp_path / "b.mp4")[0][1]
    assert image.shape == (480, 360, 3)
    # What was drawn at the frame's upper left is now at its upper right.
    (detection,) = SquareDetector().detect(image)
    assert detection.box.centre[0] > 180
    assert bright(image)[150:262, 74:80].any(axis=1).mean() > 0.9
