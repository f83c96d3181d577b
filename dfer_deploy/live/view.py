"""The view of the live answers in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.bar import Bar
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dfer_deploy.inference.windows import WHOLE
from dfer_deploy.live.session import FaceAnswer
from dfer_deploy.live.tally import Tally

_BAR_WIDTH = 24
_WAITING_S = 2.0
"""Seconds after which the view states that it waits for an answer."""


@dataclass(frozen=True)
class _Shown:
    """The state of the view for one frame, replaced as a whole, so that another thread never draws half an update.

    Attributes:
        time_s: time of the frame in seconds.
        asked_s: time of the clock when the answers arrived.
        faces: the answer of each face, and its last one with an expression.
        speed: text with frames per second and latency.
        resumed: number of times that another encoder took over a stream.
    """

    time_s: float
    asked_s: float
    faces: tuple[tuple[FaceAnswer, FaceAnswer], ...]
    speed: str
    resumed: int


class LiveView:
    """A renderable for ``rich.live.Live``: a panel for every face, and a line with speed and latency.

    Another thread may draw it during an update.
    """

    def __init__(
        self, title: str, tally: Tally, dropped: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._tally, self._dropped, self._clock = title, tally, dropped, clock
        self._shown = _Shown(0.0, clock(), (), "", 0)
        self.update(0.0, ())

    def update(self, time_s: float, faces: Sequence[FaceAnswer]) -> None:
        """Show the answers for a frame. A face without an answer keeps its last one, and its state is shown."""
        tally, last = self._tally, {face.track: last for face, last in self._shown.faces}
        shown = tuple((face, face if face.answer else last.get(face.track, face)) for face in faces)
        latency = f"{tally.latency_ms(50):.0f} ms" if tally.answers else "–"
        speed = f"{tally.frames_per_s:.1f} frames/s   latency {latency} (median)"
        self._shown = _Shown(time_s, self._clock(), shown, speed, tally.resumed)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = self._shown
        waiting_s = self._clock() - now.asked_s
        line = Text.assemble(
            (f"{now.time_s:7.1f} s", "bold"),
            f"   {now.speed}   {self._dropped()} dropped",
            no_wrap=False,
            overflow="fold",
        )
        if now.resumed:
            line.append(f"   resumed {now.resumed} ×")
        if waiting_s > _WAITING_S:
            line.append(f"   waiting for an answer for {waiting_s:.0f} s", style="yellow")
        above, below = Text(self._title, style="bold"), Group(line, Text("Ctrl-C ends", style="dim"))
        shown = now.faces
        room = console.height - 1 - len(console.render_lines(below, options))
        body: RenderableType = (
            Columns([_panel(*face) for face in shown]) if shown else Text("no face in the picture", style="dim")
        )
        if len(console.render_lines(body, options)) > room:
            # One line for each face. A view higher than the terminal would hide the speed, and would remain at the end.
            most = len(shown) if len(shown) <= room else max(0, room - 1)
            more = [Text(f"and {len(shown) - most} more")] if most < len(shown) else []
            body = Group(*[_row(*face) for face in shown[:most]], *more)
        yield Group(above, body, below)


def _panel(face: FaceAnswer, last: FaceAnswer) -> Panel:
    title, state, answer = Text(_told(face, last)), Text(_state(face)), last.answer
    if answer is None:
        return Panel(state, title=title)
    grid = Table.grid(padding=(0, 1))
    for name, probability in answer.probabilities.items():
        best = name == answer.expression
        style = "bold" if best else ""
        bar = Bar(1.0, 0.0, probability, width=_BAR_WIDTH, color="cyan")
        marker = "▶" if best else " "
        grid.add_row(Text(f"{marker} {name}", style=style), bar, Text(f"{probability:.2f}", style=style))
    return Panel(grid, title=title, subtitle=state)


def _row(face: FaceAnswer, last: FaceAnswer) -> Text:
    return Text(f"{_told(face, last)}, {_state(face)}")


def _told(face: FaceAnswer, last: FaceAnswer) -> str:
    who = "whole picture" if face.track == WHOLE else f"face {face.track}"
    return f"{who}: {last.answer.expression} {last.answer.confidence:.2f}" if last.answer else who


def _state(face: FaceAnswer) -> str:
    return "not found at the moment" if face.answer is None else f"{face.answer.frames} frames"
