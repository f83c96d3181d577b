from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from dfer_deploy.drawing.timeline import MAX_PANELS, MAX_POINTS, averaged, write_timeline
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.windows import Window

LABELS = ("happiness", "sadness", "$x_$")


def window(track: int, place: int, probabilities: list[float]) -> Window:
    values = np.array(probabilities, np.float32)
    return Window(track, place * 0.5, place * 0.5 + 2.0, np.log(values), values, 16, 1.0, LABELS)


@pytest.mark.parametrize(("count", "points"), [(1, 1), (400, 400), (401, 201), (43_200, 400)])
def test_a_long_track_is_averaged_to_a_bounded_number_of_points(count: int, points: int) -> None:
    windows = (window(1, place, [0.25 + 0.5 * (place % 2), 0.5, 0.25]) for place in range(count))
    curves = averaged(windows, count, MAX_POINTS)
    assert curves.times.shape == (points,)
    assert curves.probabilities.shape == (points, 3)
    together = -(-count // points)
    assert curves.times[0] == pytest.approx(1.0 + 0.5 * (min(together, count) - 1) / 2)
    # The last point stands for the windows that are left, of which there may be fewer.
    left = range((points - 1) * together, count)
    assert curves.times[-1] == pytest.approx(1.0 + 0.5 * np.mean(left))
    assert curves.probabilities[-1] == pytest.approx([0.25 + 0.5 * np.mean([k % 2 for k in left]), 0.5, 0.25], abs=1e-5)
    assert (curves.start_s, curves.end_s) == (0.0, 0.5 * (count - 1) + 2.0)
    assert (curves.edges[0], curves.edges[-1], len(curves.edges)) == (curves.start_s, curves.end_s, points + 1)
    if together % 2 == 0 and count % together == 0:
        assert curves.probabilities[:, 0] == pytest.approx(0.5)


def picture(path: Path, recording: Recording, title: str = "a_$b$.mp4", end_s: float = 12.0) -> Image.Image:
    assert write_timeline(path, recording, 0, title, interval_s=0.125, end_s=end_s)
    return Image.open(path).convert("RGB")


def test_the_picture_has_a_panel_for_each_track_and_curves_in_it(tmp_path: Path) -> None:
    recording = Recording(LABELS)
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
    recording = Recording(LABELS)
    assert not write_timeline(tmp_path / "a.png", recording, 0, "a", interval_s=0.125, end_s=9.0)
    assert not (tmp_path / "a.png").exists()
    recording.add_window(0, window(1, 0, [0.2, 0.3, 0.5]))
    assert picture(tmp_path / "a.png", recording).width > 500


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels of the last picture."""
    panels: list[Any] = []
    savefig = Figure.savefig

    def watched(self: Figure, *arguments: Any, **options: Any) -> None:
        panels[:] = self.axes
        savefig(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", watched)
    return panels


def test_the_axis_spans_the_video_and_the_answers_the_time_that_they_are_shown(tmp_path: Path, axes: list[Any]) -> None:
    recording = Recording(LABELS)
    recording.add_window(0, window(1, 8, [0.2, 0.3, 0.5]))
    picture(tmp_path / "a.png", recording, end_s=30.0)
    assert axes[0].get_xlim() == (0.0, 30.0)
    *curves, best = axes[0].get_lines()
    for curve, value in zip(curves, (0.2, 0.3, 0.5), strict=True):
        # A dot in the middle of the window, and a line over it, whose last frame stands for the interval.
        assert curve.get_xdata().tolist() == [4.0, 5.0, 6.125]
        assert curve.get_ydata() == pytest.approx([value] * 3)
        assert curve.get_markevery() == [1]
    assert list(best.get_xdata()) == [4.0, 6.125]
    recording.forget(0)
    recording.add_window(0, Window(1, 0.0, 0.0, *[np.full(3, 1 / 3, np.float32)] * 2, 1, 1.0, LABELS))
    picture(tmp_path / "a.png", recording, end_s=0.04)
    assert axes[0].get_xlim() == (0.0, 0.04)
    assert list(axes[0].get_lines()[-1].get_xdata()) == [0.0, 0.04]


def test_the_legend_stays_in_the_picture(tmp_path: Path, axes: list[Any]) -> None:
    labels = tuple(f"class {number} with quite a long name" for number in range(11))
    recording = Recording(labels)
    recording.add_window(0, Window(1, 0.0, 1.0, *[np.full(11, 1 / 11, np.float32)] * 2, 16, 1.0, labels))
    picture(tmp_path / "a.png", recording)
    figure = axes[0].figure
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= figure.bbox.width


def test_many_windows_are_bands(tmp_path: Path, axes: list[Any]) -> None:
    recording = Recording(LABELS)
    for place in range(200):
        recording.add_window(0, window(1, place, [0.9, 0.05, 0.05] if place % 2 else [0.2, 0.5, 0.3]))
    picture(tmp_path / "a.png", recording, end_s=150.0)
    panel, bar = axes
    assert bar.get_ylabel() == "probability"
    assert not panel.get_lines()
    (bands,) = panel.collections
    assert bands.get_array().shape == (3, 200)
    assert np.allclose(bands.get_array()[:, :2].T, [[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
    assert [text.get_text() for text in panel.get_yticklabels()] == list(LABELS)
    assert panel.get_xlim() == (0.0, 150.0)
    # The first class stands above.
    assert panel.get_ylim()[0] > panel.get_ylim()[1]


def test_a_name_in_any_writing_is_drawn_or_left_to_boxes_without_a_warning(tmp_path: Path) -> None:
    recording = Recording(LABELS)
    recording.add_window(0, window(1, 0, [0.2, 0.3, 0.5]))
    # Private characters have no glyph anywhere; a warning would be an error here.
    picture(tmp_path / "a.png", recording, "\u9854 \U0010fffd \ue123.mp4")
    both = {0x9854, 0x984F}
    if not any(both <= set(font_manager.get_font(path).get_charmap()) for path in font_manager.findSystemFonts()):
        pytest.skip("no font of this machine has Chinese characters")
    # As boxes, two characters of one writing are alike.
    assert picture(tmp_path / "b.png", recording, "\u9854") != picture(tmp_path / "c.png", recording, "\u984f")
