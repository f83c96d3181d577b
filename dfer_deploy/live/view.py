"""The live answers in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.bar import Bar
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dfer_deploy.live.session import FaceAnswer
from dfer_deploy.live.tally import Tally
from dfer_deploy.windows import WHOLE

_BAR_WIDTH = 24
_WAITING_S = 2.0
"""An answer that takes longer is said to be waited for."""


class LiveView:
    """What ``rich.live.Live`` draws again and again: a panel for every face, and a line with speed and latency."""

    def __init__(
        self, title: str, tally: Tally, dropped: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._tally, self._dropped, self._clock = title, tally, dropped, clock
        self._faces: Sequence[FaceAnswer] = ()
        self._last: dict[int, FaceAnswer] = {}
        self._time_s = 0.0
        self._asked_s = clock()

    def update(self, time_s: float, faces: Sequence[FaceAnswer]) -> None:
        """Shows the answers for a frame. A face that is not found at the moment keeps its last answer."""
        last = {face.track: face if face.answer else self._last.get(face.track, face) for face in faces}
        self._time_s, self._faces, self._last = time_s, faces, last
        self._asked_s = self._clock()

    def __rich__(self) -> RenderableType:
        tally, waiting_s = self._tally, self._clock() - self._asked_s
        panels = [
            _panel(face, self._last[face.track]) for face in self._faces if self._last[face.track].answer is not None
        ]
        body: RenderableType = Columns(panels) if panels else Text("no face in the picture", style="dim")
        latency = f"{tally.latency_ms(50):.0f} ms" if tally.answers else "–"
        line = Text.assemble(
            (f"{self._time_s:7.1f} s", "bold"),
            f"   {tally.frames_per_s:.1f} frames/s   latency {latency} (median)   {self._dropped()} dropped",
        )
        if tally.resumed:
            line.append(f"   resumed {tally.resumed} ×")
        if waiting_s > _WAITING_S:
            line.append(f"   waiting for an answer for {waiting_s:.0f} s", style="yellow")
        return Group(Text(self._title, style="bold"), body, line, Text("Ctrl-C ends", style="dim"))


def _panel(face: FaceAnswer, last: FaceAnswer) -> Panel:
    answer = last.answer
    assert answer is not None  # noqa: S101 - those without one are left out
    grid = Table.grid(padding=(0, 1))
    for name, probability in answer.probabilities.items():
        best = name == answer.expression
        style = "bold" if best else ""
        bar = Bar(1.0, 0.0, probability, width=_BAR_WIDTH, color="cyan")
        marker = "▶" if best else " "
        grid.add_row(Text(f"{marker} {name}", style=style), bar, Text(f"{probability:.2f}", style=style))
    who = "whole picture" if face.track == WHOLE else f"face {face.track}"
    state = f"{answer.frames} frames" if face.answer is not None else "not found at the moment"
    return Panel(grid, title=Text(f"{who}: {answer.expression} {answer.confidence:.2f}"), subtitle=Text(state))
