"""What ``dfer-deploy predict`` shows and writes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.cells import cell_len

from dfer_deploy.console import stdout, table
from dfer_deploy.files import refuse_to_replace_input, refuse_to_write_into_bundle
from dfer_deploy.inference.recording import Recording, TrackSummary
from dfer_deploy.inference.window_files import shown, write_csv, write_results
from dfer_deploy.inference.windows import Window

MOST_ROWS = 20
"""Windows that the terminal shows; of more, it shows a line for every track, and at most so many."""

_MOST_SHARES = 4
_SHORTEST_INPUT = 8

_SUFFIXES = {"timeline": ".png", "crops": ".png", "video": ".mp4"}
"""How the names of pictures and videos have to end."""


@dataclass(frozen=True)
class OutputFiles:
    """The files that were asked for.

    Attributes:
        json: all windows.
        csv: all windows.
        timeline: probabilities over time, one picture for each input.
        crops: what the model saw, one picture for each input.
        video: with boxes and answers, one for each input.
    """

    json: Path | None
    csv: Path | None
    timeline: Path | None
    crops: Path | None
    video: Path | None

    def check(self, inputs: Sequence[Path], bundle: Path | None) -> None:
        """Refuses, before the work, names that would lose something.

        Raises:
            click.UsageError: a file would replace another output, its name is no file's or says something else than
                what is written, or its folder does not exist or cannot be written.
            DferDeployError: a file would replace an input, or lie in the bundle.
        """
        names = ("json", "csv", "timeline", "crops", "video")
        taken: dict[str, str] = {}
        for name in names:
            file: Path | None = getattr(self, name)
            if file is None:
                continue
            _check_name(name, file)
            several = name not in ("json", "csv") and len(inputs) > 1
            for path in [one_of(file, inputs, number) for number in range(len(inputs))] if several else [file]:
                refuse_to_replace_input(path, inputs)
                if bundle:
                    refuse_to_write_into_bundle(path, bundle)
                place = os.path.realpath(path)
                if place in taken:
                    raise click.UsageError(f"--{name} would replace {taken[place]}; choose another name")
                taken[place] = f"what --{name} writes"


def _check_name(name: str, file: Path) -> None:
    suffix, folder = _SUFFIXES.get(name), file.absolute().parent
    if file == Path("-"):
        raise click.UsageError(f"--{name} - would be a file of that name, not the standard output; give another name")
    if suffix and file.suffix.lower() != suffix:
        raise click.UsageError(f"--{name} {file}: expected a name that ends with {suffix}, which is what is written")
    if not folder.is_dir():
        raise click.UsageError(f"--{name} {file}: the folder {file.parent} does not exist; make it first")
    if file.exists() and not file.is_file():
        raise click.UsageError(f"--{name} {file} is no regular file, so it is not replaced; give the name of a file")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.UsageError(
            f"--{name} {file}: the folder {file.parent} cannot be written ({error.strerror or error}); choose another "
            "place"
        ) from error


def one_of(file: Path, inputs: Sequence[Path], number: int) -> Path:
    """The file for one input: ``file`` itself for a single one, else with number and name before the suffix."""
    if len(inputs) == 1:
        return file
    return file.with_name(f"{file.stem}-{number + 1}-{inputs[number].stem}{file.suffix}")


def print_answers(answered_by: str, recording: Recording, inputs: Sequence[Path]) -> None:
    """A line for every window, or for every track where there are many windows; nothing where there are none."""
    total = recording.count()
    if total == 0:
        return
    if total > MOST_ROWS:
        _print_tracks(answered_by, recording, inputs)
    else:
        _print_windows(answered_by, recording, inputs)


def write_answers(files: OutputFiles, recording: Recording, inputs: Sequence[Path], about: dict[str, object]) -> None:
    """Writes the CSV and the JSON, each where it was asked for."""
    if files.csv:
        write_csv(files.csv, recording, inputs)
    if files.json:
        write_results(files.json, recording, inputs, about)


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
        if len(tracks) < MOST_ROWS:
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
    """A table without the columns that the terminal has no room for; the first expression with its number stays.

    Args:
        title: of the table.
        columns: cells by column; ``expression``, where there is one, is the first of each rank.
        ranking: the name of the last column.
        ranks: its cells, expressions with their numbers.
        inputs: a single one is known to who gave it.
    """

    def least() -> int:
        """Columns of the terminal that two expressions side by side need, where there are two."""
        return 3 + max(max(map(cell_len, words)) * min(2, len(words)) + 2 * (len(words) > 1) for words in ranks)

    def room() -> int:
        return stdout.width - 1 - sum(3 + max(map(cell_len, [name, *cells])) for name, cells in columns.items())

    if room() < least() and len(inputs) == 1:
        del columns["input"]
    if room() < least():
        columns.pop("expression", None)
        ranking, ranks = "expression", [words[:1] for words in ranks]
    if room() < least() and "input" in columns:
        columns["input"] = [_end_of(text, max(_SHORTEST_INPUT, stdout.width // 3)) for text in columns["input"]]
    several = len(set(columns.get("track", ()))) > 1
    for name in ("windows", "seconds", "track") if several else ("windows", "track", "seconds"):
        if room() < least():
            columns.pop(name, None)
    columns[ranking] = [_filled(words, room() - 3) for words in ranks]
    table(title, list(columns), zip(*columns.values(), strict=True))


def _filled(words: Sequence[str], width: int) -> str:
    """Lines of as many words as there is room for; the table itself would break between a word and its number."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(f"{lines[-1]}  {word}") <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _end_of(text: str, width: int) -> str:
    """The end of a text, which tells files apart, in so many columns of a terminal."""
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
    """The classes that are the answer of a window, the most frequent first."""
    shares = list(track.shares.items())
    words = [f"{labels[index]}\N{NO-BREAK SPACE}{share:.0%}" for index, share in shares[:_MOST_SHARES]]
    return [*words, "…"] if len(shares) > _MOST_SHARES else words


def _ranked(window: Window) -> list[str]:
    """All classes with their probabilities, the most probable first."""
    return [
        f"{window.labels[k]}\N{NO-BREAK SPACE}{window.probabilities[k]:.3f}" for k in np.argsort(-window.probabilities)
    ]
