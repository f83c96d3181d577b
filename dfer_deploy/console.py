"""Output on a terminal: steps with their duration, progress with the time left, warnings and tables."""

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
"""Width in columns if the output is not a terminal, so that tables in files and logs are not folded."""


LINE_EVERY_S = 30.0
"""Seconds between two progress lines of long work without a terminal, so that a log file is not silent for minutes."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Spell out control characters in a text, such as an escape sequence in a file's name."""
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
        """Raise instead of rich's exit with code 1, which means a failed gate; ``cli`` chooses the exit code."""
        raise BrokenPipeError


def _console(stream: Literal["stdout", "stderr"]) -> Console:
    # The stream may be None (closed, or in a program without a console), or any object that a notebook has put there.
    isatty = getattr(getattr(sys, stream), "isatty", None)
    is_terminal = isatty is not None and isatty()
    return _Console(
        stderr=stream == "stderr", highlight=False, soft_wrap=True, width=None if is_terminal else _WIDTH_OF_A_PIPE
    )


stdout = _console("stdout")
"""The console for results."""

stderr = _console("stderr")
"""The console for progress and warnings."""


@contextlib.contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Show a running step, then a tick with its duration in seconds and the strings appended to the yielded list."""
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
    """Print a line every ``LINE_EVERY_S`` seconds until the context ends."""
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
    """Progress without a terminal: a line every ``LINE_EVERY_S`` seconds, with the time left."""

    def __init__(self, *, counts: bool) -> None:
        # With auto_refresh, rich counts in a thread that ends at once if nothing is drawn: no line before the end.
        super().__init__(console=stderr, disable=True, auto_refresh=False)
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
    """Iterate with a progress bar and the time left. Without a terminal, print a line every ``LINE_EVERY_S``."""
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=what)


def progress_bar(*, counts: bool = True) -> Progress:
    """Create a progress bar with description, count, elapsed time and time left, which vanishes at the end.

    Without a terminal, a line with the same content is printed every ``LINE_EVERY_S`` seconds.

    Args:
        counts: show the count of items; a line without a terminal otherwise shows percent.
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
    """Print a table. The caller formats numbers, and columns of numbers are aligned to the right."""
    # Control characters are spelled out before the columns are measured.
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    grid = Table(title=Text(title, style="bold"), title_justify="left")
    for index, column in enumerate(columns):
        numbers = all(not row[index] or row[index][0] in "0123456789-+≤" for row in cells)
        grid.add_column(Text(column), justify="right" if numbers and index else "left", overflow="fold")
    for row in cells:
        grid.add_row(*[Text(cell) for cell in row])
    stdout.print(grid)
