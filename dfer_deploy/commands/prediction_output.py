"""The terminal output of ``dfer-deploy predict``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from rich.cells import cell_len

from dfer_deploy.console import stdout, table
from dfer_deploy.inference.recording import Recording, TrackSummary
from dfer_deploy.inference.window_files import shown
from dfer_deploy.inference.windows import Window

MAX_ROWS = 20
"""Largest number of windows that the terminal shows. For more windows, it shows at most so many lines of tracks."""

_MAX_SHARES = 4
"""Largest number of classes that the line of a track shows, so that it fits a terminal."""

_MIN_INPUT_WIDTH = 8
"""Smallest width of the column of inputs, in terminal columns, at which names can still be distinguished."""


def print_answers(answered_by: str, recording: Recording, inputs: Sequence[Path]) -> None:
    """Print a line for every window, or for every track if there are many windows; nothing if there are none."""
    total = recording.count()
    if total == 0:
        return
    if total > MAX_ROWS:
        _print_tracks(answered_by, recording, inputs)
    else:
        _print_windows(answered_by, recording, inputs)


def _print_windows(answered_by: str, recording: Recording, inputs: Sequence[Path]) -> None:
    windows = [(path, window) for number, path in enumerate(inputs) for window in recording.windows(number)]
    columns = {"input": [shown(path) for path, _ in windows]}
    if any(not math.isnan(window.end_s) for _, window in windows):
        columns["track"] = [str(window.track or "") for _, window in windows]
        columns["seconds"] = [_span(window) for _, window in windows]
    columns["expression"] = [window.expression for _, window in windows]
    _print_fitting(answered_by, columns, "probabilities", [_ranked(window) for _, window in windows], inputs)


def _print_tracks(answered_by: str, recording: Recording, inputs: Sequence[Path]) -> None:
    tracks: list[tuple[Path, TrackSummary]] = []
    more = 0
    for path, track in _tracks(recording, inputs):
        if len(tracks) < MAX_ROWS:
            tracks.append((path, track))
        else:
            more += 1
    columns = {
        "input": [shown(path) for path, _ in tracks],
        "track": [str(track.track or "") for _, track in tracks],
        "seconds": [_span(track) for _, track in tracks],
        "windows": [str(track.windows) for _, track in tracks],
    }
    shares = [_shares(track, recording.labels) for _, track in tracks]
    _print_fitting(answered_by, columns, "expressions, share of the windows", shares, inputs)
    if more:
        click.echo(f"and {more} more tracks, which --csv and --json write")


def _print_fitting(
    title: str, columns: dict[str, list[str]], ranking: str, ranks: list[list[str]], inputs: Sequence[Path]
) -> None:
    """Print a table without the columns that do not fit the terminal. The first expression always stays.

    Args:
        title: title of the table.
        columns: cells by column name. The column ``expression``, if there is one, is the first of each rank.
        ranking: name of the last column.
        ranks: cells of the last column: expressions with their numbers.
        inputs: the inputs. The name of a single input is omitted.
    """

    def least() -> int:
        """Return the number of terminal columns that two expressions side by side need, if there are two."""
        return 3 + max(max(map(cell_len, words)) * min(2, len(words)) + 2 * (len(words) > 1) for words in ranks)

    def room() -> int:
        return stdout.width - 1 - sum(3 + max(map(cell_len, [name, *cells])) for name, cells in columns.items())

    if room() < least() and len(inputs) == 1:
        del columns["input"]
    if room() < least():
        columns.pop("expression", None)
        ranking, ranks = "expression", [words[:1] for words in ranks]
    if room() < least() and "input" in columns:
        columns["input"] = [_end_of(text, max(_MIN_INPUT_WIDTH, stdout.width // 3)) for text in columns["input"]]
    several = len(set(columns.get("track", ()))) > 1
    for name in ("windows", "seconds", "track") if several else ("windows", "track", "seconds"):
        if room() < least():
            columns.pop(name, None)
    columns[ranking] = [_filled(words, room() - 3) for words in ranks]
    table(title, list(columns), zip(*columns.values(), strict=True))


def _filled(words: Sequence[str], width: int) -> str:
    """Wrap words to a width. The table itself would break between a word and its number."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(f"{lines[-1]}  {word}") <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _end_of(text: str, width: int) -> str:
    """Return the end of a text in at most ``width`` terminal columns. File names differ at the end."""
    if cell_len(text) <= width:
        return text
    while cell_len(text) >= width:
        text = text[1:]
    return f"…{text}"


def _tracks(recording: Recording, inputs: Sequence[Path]) -> Iterator[tuple[Path, TrackSummary]]:
    for number, path in enumerate(inputs):
        for track in recording.tracks(number):
            yield path, track


def _span(times: Window | TrackSummary) -> str:
    return "" if math.isnan(times.end_s) else f"{times.start_s:.2f}–{times.end_s:.2f}"


def _shares(track: TrackSummary, labels: Sequence[str]) -> list[str]:
    """Return the classes that are the answer of a window, the most frequent first."""
    shares = list(track.shares.items())
    words = [f"{labels[index]}\N{NO-BREAK SPACE}{share:.0%}" for index, share in shares[:_MAX_SHARES]]
    return [*words, "…"] if len(shares) > _MAX_SHARES else words


def _ranked(window: Window) -> list[str]:
    """Return all classes with their probabilities, the most probable first."""
    return [
        f"{window.labels[k]}\N{NO-BREAK SPACE}{window.probabilities[k]:.3f}" for k in np.argsort(-window.probabilities)
    ]
