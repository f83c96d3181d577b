"""What is shown and what is counted. Time is faked."""

from __future__ import annotations

import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from dfer_deploy.answers.clip_answers import StreamAnswer
from dfer_deploy.clips.faces import Box
from dfer_deploy.errors import DferDeployError
from dfer_deploy.live.overlay_window import LiveOverlay, OverlayWindow
from dfer_deploy.live.session import FaceAnswer
from dfer_deploy.live.tally import MAX_TRACKS, Tally
from dfer_deploy.live.view import LiveView


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def face(
    track: int,
    expression: str | None = "happiness",
    *,
    resumed: bool = False,
    latency_s: float = 0.1,
) -> FaceAnswer:
    answer = None
    if expression:
        probabilities = {"happiness": 0.25, "fear": 0.25} | {expression: 0.75}
        answer = StreamAnswer(expression, 0.75, probabilities, probabilities, frames=9, resumed=resumed)
    return FaceAnswer(track, 1.5, 0.0, latency_s, answer, Box(10, 10, 40, 40))


def shown(view: LiveView, width: int = 110, height: int = 25) -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(view)
    return console.file.getvalue()


def test_the_view_tells_all_of_it_without_colour() -> None:
    clock, dropped = Clock(), [0]
    tally = Tally(clock)
    view = LiveView("cam, triton", tally, lambda: dropped[0], clock)
    assert "no face in the picture" in shown(view)
    clock.now, dropped[0] = 101.0, 3
    answers = [face(1), face(2, "fear", resumed=True)]
    tally.add(answers)
    view.update(1.5, answers)
    text = shown(view)
    for part in ("cam, triton", "face 1: happiness 0.75", "face 2: fear 0.75", "▶ fear", "9 frames"):
        assert part in text
    assert "█" * 18 + " " in text
    for part in ("1.5 s", "1.0 frames/s", "latency 100 ms", "3 dropped", "resumed 1 ×"):
        assert part in text
    assert "waiting" not in text
    clock.now = 105.0
    assert "waiting for an answer for 4 s" in shown(view)


@pytest.mark.parametrize(("faces", "width", "height"), [(1, 40, 8), (6, 80, 24), (32, 80, 24), (32, 40, 10)])
def test_the_view_fits_the_terminal(faces: int, width: int, height: int) -> None:
    clock = Clock()
    tally = Tally(clock)
    view = LiveView("cam", tally, lambda: 0, clock)
    answers = [face(track, resumed=True) for track in range(1, faces + 1)]
    tally.add(answers)
    view.update(1.5, answers)
    clock.now = 110.0
    lines = shown(view, width, height).splitlines()
    assert len(lines) <= height
    # What is no panel is folded.
    told = "".join(lines)
    for part in (
        "face 1: happiness 0.75",
        "frames/s",
        f"resumed {faces} ×",
        "waiting for an answer for 10 s",
        "Ctrl-C",
    ):
        assert part.replace(" ", "") in told.replace(" ", "")
    assert ("more" in told) == (faces == 32)


def test_a_face_that_is_not_found_keeps_its_last_answer() -> None:
    view = LiveView("cam", Tally(), lambda: 0)
    view.update(1.0, [face(1)])
    view.update(1.2, [face(1, None)])
    assert "face 1: happiness 0.75" in shown(view)
    assert "not found at the moment" in shown(view)
    view.update(1.4, [])
    assert "no face in the picture" in shown(view)


def test_a_frame_that_is_drawn_meanwhile_is_whole() -> None:
    tally = Tally()
    views: list[LiveView] = []

    def dropped() -> int:
        # The loop goes on while the other thread draws.
        if views:
            tally.add([face(2, "fear")])
            views[0].update(9.0, [face(2, "fear")])
        return 0

    views.append(LiveView("cam", tally, dropped))
    tally.add([face(1)])
    views[0].update(1.0, [face(1)])
    assert "face 1: happiness" in shown(views[0])
    assert "face 2: fear" in shown(views[0])


def test_the_tally_is_bounded_and_adds_up() -> None:
    clock = Clock()
    tally = Tally(clock)
    for number in range(1, 3 * MAX_TRACKS):
        clock.now += 0.1
        tally.add([face(number, latency_s=0.2 if number % 10 else 1.0), face(number, None)])
    assert tally.frames == tally.answers == 3 * MAX_TRACKS - 1
    assert list(tally.tracks) == list(range(2 * MAX_TRACKS, 3 * MAX_TRACKS))
    assert tally.frames_per_s == pytest.approx(10, abs=0.5)
    assert (tally.latency_ms(50), tally.latency_ms(99)) == (pytest.approx(200), pytest.approx(1000))
    assert tally.to_dict(7)["dropped"] == 7
    tally.add([face(9000), face(9000, "fear"), face(9000)])
    assert tally.tracks[9000].shares(1) == "happiness 67 %"


def test_the_overlay_draws_the_box_and_the_answer() -> None:
    image = np.full((120, 400, 3), 200, np.uint8)
    overlay = LiveOverlay()
    drawn = np.asarray(overlay.drawn(image, [face(1)]))
    assert drawn.shape == image.shape
    assert (drawn[10, 11:39] == drawn[10, 11]).all()
    assert tuple(drawn[10, 20]) == (0xE6, 0x9F, 0x00)
    changed = (drawn != image).any(2)
    assert changed[10:60, 50:].mean() > 0.2
    assert not changed[80:].any()
    assert np.array_equal(np.asarray(overlay.drawn(image, [])), image)
    assert overlay.drawn(np.zeros((3000, 1500, 3), np.uint8), [face(1)]).size == (480, 960)
    assert isinstance(overlay.drawn(image[:1, :1], [face(1)]), Image.Image)


def test_panels_in_the_window_do_not_flicker(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **options: texts.append(text))
    image = np.full((480, 480, 3), 200, np.uint8)

    def has_panel(overlay: LiveOverlay, right: float, expression: str | None = "happiness") -> bool:
        texts.clear()
        overlay.drawn(image, [dataclasses.replace(face(1, expression), box=Box(10, 10, right, 470))])
        return len(texts) > 1

    most = next(right for right in range(470, 100, -1) if has_panel(LiveOverlay(), right))
    overlay = LiveOverlay()
    assert not has_panel(overlay, most + 1)
    assert not has_panel(overlay, most), "there is no room to move"
    assert has_panel(overlay, most - 100)
    assert has_panel(overlay, most), "it stays while it fits"
    assert has_panel(overlay, most, None), "a face that is not found keeps its answer"
    overlay.drawn(image, [])
    assert not has_panel(overlay, most - 100, None), "nor one that is gone"
    # Frames of another size are drawn as such.
    monkeypatch.undo()
    large = np.full((700, 800, 3), 200, np.uint8)
    assert overlay.drawn(large, [face(1)]) == LiveOverlay().drawn(large, [face(1)])


def test_no_window_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tkinter")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(DferDeployError, match="no window can be opened"):
        OverlayWindow("x")
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(DferDeployError, match="python3-tk"):
        OverlayWindow("x")
