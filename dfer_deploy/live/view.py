"""The live answers in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.bar import Bar
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dfer_deploy.answers import StreamAnswer
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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tally, waiting_s = self._tally, self._clock() - self._asked_s
        latency = f"{tally.latency_ms(50):.0f} ms" if tally.answers else "–"
        line = Text.assemble(
            (f"{self._time_s:7.1f} s", "bold"),
            f"   {tally.frames_per_s:.1f} frames/s   latency {latency} (median)   {self._dropped()} dropped",
            no_wrap=False,
            overflow="fold",
        )
        if tally.resumed:
            line.append(f"   resumed {tally.resumed} ×")
        if waiting_s > _WAITING_S:
            line.append(f"   waiting for an answer for {waiting_s:.0f} s", style="yellow")
        above, below = Text(self._title, style="bold"), Group(line, Text("Ctrl-C ends", style="dim"))
        shown = [(face, self._last[face.track]) for face in self._faces if self._last[face.track].answer is not None]
        room = console.height - 1 - len(console.render_lines(below, options))
        body: RenderableType = (
            Columns([_panel(*face) for face in shown]) if shown else Text("no face in the picture", style="dim")
        )
        if len(console.render_lines(body, options)) > room:
            # A line for each face. What is higher than the terminal hides the speed, and is left there in the end.
            most = len(shown) if len(shown) <= room else max(0, room - 1)
            more = [Text(f"and {len(shown) - most} more")] if most < len(shown) else []
            body = Group(*[_row(*face) for face in shown[:most]], *more)
        yield Group(above, body, below)


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
    return Panel(grid, title=Text(_told(face, answer)), subtitle=Text(_state(face, answer)))


def _row(face: FaceAnswer, last: FaceAnswer) -> Text:
    answer = last.answer
    assert answer is not None  # noqa: S101 - as above
    return Text(f"{_told(face, answer)}, {_state(face, answer)}")


def _told(face: FaceAnswer, answer: StreamAnswer) -> str:
    who = "whole picture" if face.track == WHOLE else f"face {face.track}"
    return f"{who}: {answer.expression} {answer.confidence:.2f}"


def _state(face: FaceAnswer, answer: StreamAnswer) -> str:
    return f"{answer.frames} frames" if face.answer is not None else "not found at the moment"
