"""What was answered and seen in videos, kept in a temporary file, so that memory does not grow with their length.

The file is SQLite's private temporary database: it has no name, and is gone when the process ends, however it ends.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sqlite3
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dfer_deploy.clips.faces import Box
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import atomic_file
from dfer_deploy.inference.windows import Face, Window
from dfer_deploy.runtimes.predictor import Float32

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -4000;
CREATE TABLE windows (
    input INTEGER, track INTEGER, start_s REAL, end_s REAL, middle_s REAL, frames INTEGER, detection REAL,
    expression INTEGER, logits BLOB, probabilities BLOB
);
CREATE INDEX windows_in_order ON windows (input, track, middle_s);
CREATE TABLE sightings (input INTEGER, time_s REAL, track INTEGER, left REAL, top REAL, right REAL, bottom REAL);
CREATE INDEX sightings_in_order ON sightings (input, time_s, track);
"""
_COLUMNS = "track, start_s, end_s, logits, probabilities, frames, detection"


@dataclass(frozen=True)
class TrackSummary:
    """One person in one video.

    Attributes:
        track: the person's number.
        start_s: when the first window begins; NaN where the input has no times.
        end_s: when the last window ends; NaN where the input has no times.
        windows: how many there are.
        shares: the share of the windows whose answer is this class, by its index; the largest first.
    """

    track: int
    start_s: float
    end_s: float
    windows: int
    shares: dict[int, float]


class Recording:
    """The windows and boxes of several inputs, which are named by their numbers. A context manager, for one thread."""

    def __init__(self, labels: Sequence[str]) -> None:
        """
        Args:
            labels: C class names, in the order of the logits.
        """
        self.labels = tuple(labels)
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(_TABLES)

    def add_window(self, number: int, window: Window) -> None:
        """Keeps the answer to a window of the input ``number``."""
        blobs = (window.logits.astype(np.float32).tobytes(), window.probabilities.astype(np.float32).tobytes())
        self._execute(
            "INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            number, window.track, window.start_s, window.end_s, window.middle_s, window.frames, window.detection,
            int(window.logits.argmax()), *blobs,
        )  # fmt: skip

    def add_box(self, number: int, time_s: float, face: Face) -> None:
        """Keeps where a face of the input ``number`` is at a time; nothing where no faces are looked for."""
        box = face.box
        if box is not None:
            self._execute(
                "INSERT INTO sightings VALUES (?, ?, ?, ?, ?, ?, ?)",
                number, time_s, face.track, box.left, box.top, box.right, box.bottom,
            )  # fmt: skip

    def forget(self, number: int) -> None:
        """Drops all of the input ``number``."""
        self._execute("DELETE FROM windows WHERE input = ?", number)
        self._execute("DELETE FROM sightings WHERE input = ?", number)

    def count(self, number: int | None = None) -> int:
        """How many windows the input ``number`` has, or all inputs have."""
        where = "" if number is None else " WHERE input = ?"
        rows = self._execute(f"SELECT COUNT(*) FROM windows{where}", *([] if number is None else [number]))  # noqa: S608
        return int(rows.fetchone()[0])

    def windows(self, number: int, track: int | None = None) -> Iterator[Window]:
        """The windows of an input, or of one track in it, by track and time."""
        where, values = ("", [number]) if track is None else (" AND track = ?", [number, track])
        query = f"SELECT {_COLUMNS} FROM windows WHERE input = ?{where} ORDER BY track, middle_s"  # noqa: S608
        return (self._window(row) for row in self._execute(query, *values))

    def window_around(self, number: int, track: int, time_s: float) -> Window | None:
        """The window of a track whose middle is nearest to ``time_s``, of two the earlier one; None without any."""
        query = f"SELECT {_COLUMNS} FROM windows WHERE input = ? AND track = ? AND middle_s "  # noqa: S608
        sides = ("<= ? ORDER BY middle_s DESC LIMIT 1", "> ? ORDER BY middle_s LIMIT 1")
        rows = [self._execute(query + side, number, track, time_s).fetchone() for side in sides]
        windows = [self._window(row) for row in rows if row]
        return min(windows, key=lambda window: abs(window.middle_s - time_s), default=None)

    def boxes(self, number: int, time_s: float) -> dict[int, Box]:
        """The boxes of a frame, by track; ``time_s`` is the frame's to half a millisecond."""
        rows = self._execute(
            "SELECT track, left, top, right, bottom FROM sightings WHERE input = ? AND time_s BETWEEN ? AND ? "
            "ORDER BY track",
            number, time_s - 0.0005, time_s + 0.0005,
        )  # fmt: skip
        return {track: Box(*edges) for track, *edges in rows}

    def tracks(self, number: int) -> Iterator[TrackSummary]:
        """The tracks of an input, in the order of appearance."""
        query = (
            "SELECT track, expression, COUNT(*), MIN(start_s), MAX(end_s) FROM windows WHERE input = ? "
            "GROUP BY track, expression ORDER BY track, COUNT(*) DESC, expression"
        )
        rows: list[Any] = []
        for row in self._execute(query, number):
            if rows and rows[0][0] != row[0]:
                yield _summary(rows)
                rows = []
            rows.append(row)
        if rows:
            yield _summary(rows)

    def _window(self, row: Any) -> Window:
        track, start_s, end_s, logits, probabilities, frames, detection = row
        return Window(
            track=track,
            start_s=_number(start_s),
            end_s=_number(end_s),
            logits=_array(logits),
            probabilities=_array(probabilities),
            frames=frames,
            detection=detection,
            labels=self.labels,
        )

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def _execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._database.execute(query, values)
        except sqlite3.OperationalError as error:  # the disk is full, or there is no folder for temporary files
            raise DferDeployError(
                f"the answers cannot be kept in a temporary file ({error}); free some space or choose another folder "
                "with SQLITE_TMPDIR"
            ) from error


def write_csv(path: Path, recording: Recording, inputs: Sequence[Path]) -> None:
    """Writes one line for each window, atomically; times are empty where an input has none.

    Texts are quoted, and those that a spreadsheet would take for a formula get an apostrophe in front (OWASP, "CSV
    Injection").
    """
    columns = ("input", "track", "start_s", "end_s", "frames", "detection", "expression", "confidence")
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([*columns, *map(_cell, recording.labels)])
        for number, source in enumerate(inputs):
            for window in recording.windows(number):
                writer.writerow(
                    [
                        _cell(shown(source)),
                        window.track,
                        *(value if math.isfinite(value) else None for value in _times(window)),
                        window.frames,
                        round(window.detection, 4),
                        _cell(window.expression),
                        *(round(float(value), 6) for value in (window.confidence, *window.probabilities)),
                    ]
                )


def write_results(path: Path, recording: Recording, inputs: Sequence[Path], about: dict[str, Any]) -> None:
    """Writes what ``files.write_json`` would for ``about`` with a list ``results`` of all windows, one at a time."""
    before, after = json.dumps(
        about | {"results": []}, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    ).split('"results": []')
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{before}"results": [')
        separator = "\n"
        for number, source in enumerate(inputs):
            for window in recording.windows(number):
                start_s, end_s = (value if math.isfinite(value) else None for value in _times(window))
                result = {
                    "input": shown(source),
                    "track": window.track,
                    "start_s": start_s,
                    "end_s": end_s,
                    "frames": window.frames,
                    "detection": window.detection,
                    "expression": window.expression,
                    "probabilities": dict(zip(window.labels, window.probabilities.tolist(), strict=True)),
                    "logits": dict(zip(window.labels, window.logits.tolist(), strict=True)),
                }
                text = json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
                file.write(separator + textwrap.indent(text, "    "))
                separator = ",\n"
        file.write(("" if separator == "\n" else "\n  ") + f"]{after}\n")


def shown(path: Path) -> str:
    """A path as text; bytes of its name that are no UTF-8 become replacement characters."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def _cell(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _times(window: Window) -> tuple[float, float]:
    return round(window.start_s, 3), round(window.end_s, 3)


def _number(value: float | None) -> float:
    """SQLite keeps NaN as NULL."""
    return math.nan if value is None else value


def _array(blob: bytes) -> Float32:
    return np.frombuffer(blob, np.float32)


def _summary(rows: list[Any]) -> TrackSummary:
    total = sum(count for _, _, count, _, _ in rows)
    return TrackSummary(
        track=rows[0][0],
        start_s=min(_number(start_s) for *_, start_s, _ in rows),
        end_s=max(_number(end_s) for *_, end_s in rows),
        windows=total,
        shares={expression: count / total for _, expression, count, _, _ in rows},
    )
