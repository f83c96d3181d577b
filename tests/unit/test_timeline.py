from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_deploy.recording import Recording
from dfer_deploy.timeline import MAX_PANELS, MAX_POINTS, averaged, write_timeline
from dfer_deploy.windows import Window

LABELS = ("happiness", "sadness", "$x_$")


def window(track: int, place: int, probabilities: list[float]) -> Window:
    values = np.array(probabilities, np.float32)
    return Window(track, place * 0.5, place * 0.5 + 2.0, np.log(values), values, 16, 1.0)


@pytest.mark.parametrize(("count", "points"), [(1, 1), (400, 400), (401, 201), (43_200, 400)])
def test_a_long_track_is_averaged_to_a_bounded_number_of_points(count: int, points: int) -> None:
    windows = (window(1, place, [0.25 + 0.5 * (place % 2), 0.5, 0.25]) for place in range(count))
    curves = averaged(windows, count, MAX_POINTS)
    assert curves.times.shape == (points,)
    assert curves.probabilities.shape == (points, 3)
    together = -(-count // points)
    assert curves.times[0] == pytest.approx(1.0 + 0.5 * (min(together, count) - 1) / 2)
    assert curves.times[-1] <= 1.0 + 0.5 * (count - 1)
    if together % 2 == 0 and count % together == 0:
        assert curves.probabilities[:, 0] == pytest.approx(0.5)


def picture(path: Path, recording: Recording) -> Image.Image:
    assert write_timeline(path, recording, 0, LABELS, "a_$b$.mp4")
    return Image.open(path).convert("RGB")


def test_the_picture_has_a_panel_for_each_track_and_curves_in_it(tmp_path: Path) -> None:
    recording = Recording()
    heights, blue = {}, {}
    for track in range(1, MAX_PANELS + 2):
        for place in range(20):
            recording.add_window(0, window(track, place, [0.9, 0.05, 0.05] if place < 10 else [0.05, 0.9, 0.05]))
        if track not in (1, 2, MAX_PANELS, MAX_PANELS + 1):
            continue
        image = picture(tmp_path / "a.png", recording)
        heights[track] = image.height
        blue[track] = int((np.abs(np.asarray(image, int) - (0, 0x72, 0xB2)).max(axis=2) < 20).sum())
    assert heights[1] < heights[2] < heights[MAX_PANELS] == heights[MAX_PANELS + 1]
    assert blue[1] < 0.7 * blue[2] < 0.2 * blue[MAX_PANELS]


def test_one_window_is_drawn_and_none_is_not(tmp_path: Path) -> None:
    recording = Recording()
    assert not write_timeline(tmp_path / "a.png", recording, 0, LABELS, "a")
    assert not (tmp_path / "a.png").exists()
    recording.add_window(0, window(1, 0, [0.2, 0.3, 0.5]))
    assert picture(tmp_path / "a.png", recording).width > 500
