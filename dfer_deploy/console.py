"""What a terminal shows: steps with their time, progress with time left, tables that are also written as JSON."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dfer_deploy.errors import OutputError

T = TypeVar("T")

_WIDTH_OF_A_PIPE = 200
"""Columns where there is no terminal that would say, so that tables in files and logs are not folded."""


LINE_EVERY_S = 30.0
"""How often long work says how far it is where there is no terminal: a log file must not be silent for minutes."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return a text with control characters, such as an escape sequence in a file's name, spelled out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class _Console(Console):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(
                f"the output cannot be printed ({reason}); free some space or print it elsewhere"
            ) from error

    def on_broken_pipe(self) -> None:
        """Rich would exit with 1, "the gate failed"; ``cli`` decides."""
        raise BrokenPipeError


def _console(stream: Literal["stdout", "stderr"]) -> Console:
    is_terminal = getattr(sys, stream).isatty()
    return _Console(
        stderr=stream == "stderr", highlight=False, soft_wrap=True, width=None if is_terminal else _WIDTH_OF_A_PIPE
    )


stdout = _console("stdout")
"""Results."""

stderr = _console("stderr")
"""Progress and warnings."""


@contextlib.contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Show a running step, then a tick, what was done and the seconds. Strings appended to the list are shown too."""
    notes: list[str] = []
    start = time.perf_counter()
    what = escape(what)
    with stderr.status(what) if stderr.is_terminal else _said_to_go_on(what, start):
        try:
            yield notes
        except BaseException:
            stderr.print(f"[red]✗[/] {what}")
            raise
    seconds = time.perf_counter() - start
    detail = "".join(f", {escape(note)}" for note in notes)
    stderr.print(f"[green]✓[/] {what} [dim]({seconds:.1f} s{detail})[/]")


@contextlib.contextmanager
def _said_to_go_on(what: str, start: float) -> Iterator[None]:
    """Print a line now and then until the context ends."""
    done = threading.Event()

    def speak() -> None:
        while not done.wait(LINE_EVERY_S):
            stderr.print(f"{what}: {time.perf_counter() - start:.0f} s so far")

    speaker = threading.Thread(target=speak, name="progress", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()


class _Lines(Progress):
    """Progress where there is no terminal: a line now and then, with the time left."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__(console=stderr, disable=True)
        self._counts, self._next_line_s = counts, time.monotonic() + LINE_EVERY_S

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next_line_s:
                return
            self._next_line_s = now + LINE_EVERY_S
            task = self._tasks[task_id]
            done = f"{task.completed:g}" if self._counts else f"{task.percentage:.0f} %"
            of_all = f" of {task.total:g}" if self._counts and task.total is not None else ""
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            what = escape(task.description) or "progress"
        stderr.print(f"{what}: {done}{of_all} after {task.elapsed or 0:.0f} s{left}")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar and the time left; without a terminal, print a line now and then."""
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=what)


def progress_bar(*, counts: bool = True) -> Progress:
    """Return a bar: description, count (unless it shows shares), time passed and left; it vanishes in the end.

    Where there is no terminal, a line every ``LINE_EVERY_S`` says the same.
    """
    if not stderr.is_terminal:
        return _Lines(counts=counts)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *([MofNCompleteColumn()] if counts else []),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    )


def warn(message: str) -> None:
    """Print one warning on stderr."""
    stderr.print(f"[yellow]warning:[/] {escape(message)}")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers are formatted by the caller, and columns of numbers are set to the right."""
    # Spelled out before the columns are measured.
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    grid = Table(title=Text(title, style="bold"), title_justify="left")
    for index, column in enumerate(columns):
        numbers = all(not row[index] or row[index][0] in "0123456789-+≤" for row in cells)
        grid.add_column(Text(column), justify="right" if numbers and index else "left", overflow="fold")
    for row in cells:
        grid.add_row(*[Text(cell) for cell in row])
    stdout.print(grid)
