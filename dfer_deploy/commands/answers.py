"""What ``dfer-deploy predict`` shows and writes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from dfer_deploy.console import table
from dfer_deploy.files import refuse_to_replace_input
from dfer_deploy.recording import Recording, TrackSummary, shown, write_csv, write_results
from dfer_deploy.windows import Window

MOST_ROWS = 20
"""Windows that the terminal shows; of more, it shows a line for every track, and at most so many."""

_MOST_SHARES = 4


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

    def check(self, inputs: Sequence[Path]) -> None:
        """Refuses, before the work, names that would lose something.

        Raises:
            click.UsageError: a file would replace another output, or its folder does not exist.
            DferDeployError: a file would replace an input.
        """
        names = ("json", "csv", "timeline", "crops", "video")
        taken: dict[str, str] = {}
        for name in names:
            file: Path | None = getattr(self, name)
            if file is None:
                continue
            if not file.absolute().parent.is_dir():
                raise click.UsageError(f"--{name} {file}: the folder {file.parent} does not exist; make it first")
            several = name not in ("json", "csv") and len(inputs) > 1
            for path in [one_of(file, inputs, number) for number in range(len(inputs))] if several else [file]:
                refuse_to_replace_input(path, inputs)
                place = os.path.realpath(path)
                if place in taken:
                    raise click.UsageError(f"--{name} would replace {taken[place]}; choose another name")
                taken[place] = f"what --{name} writes"


def one_of(file: Path, inputs: Sequence[Path], number: int) -> Path:
    """The file for one input: ``file`` itself for a single one, else with number and name before the suffix."""
    if len(inputs) == 1:
        return file
    return file.with_name(f"{file.stem}-{number + 1}-{inputs[number].stem}{file.suffix}")


def print_answers(answered_by: str, recording: Recording, inputs: Sequence[Path], labels: Sequence[str]) -> None:
    """A line for every window, or for every track where there are many windows; nothing where there are none."""
    total = recording.count()
    if total == 0:
        return
    if total > MOST_ROWS:
        _print_tracks(answered_by, recording, inputs, labels)
        return
    windows = [(path, window) for number, path in enumerate(inputs) for window in recording.windows(number)]
    timed = any(not math.isnan(window.end_s) for _, window in windows)
    columns = ("input", "track", "seconds", "expression", "probabilities")
    rows = [
        (shown(path), window.track or "", _span(window), labels[int(window.logits.argmax())], _ranked(window, labels))
        for path, window in windows
    ]
    if not timed:
        columns, rows = columns[:1] + columns[3:], [row[:1] + row[3:] for row in rows]  # type: ignore[assignment, misc]
    table(answered_by, columns, rows)


def write_answers(
    files: OutputFiles,
    recording: Recording,
    inputs: Sequence[Path],
    labels: Sequence[str],
    about: dict[str, object],
) -> None:
    """Writes the CSV and the JSON, each where it was asked for."""
    if files.csv:
        write_csv(files.csv, recording, inputs, labels)
    if files.json:
        write_results(files.json, recording, inputs, labels, about)


def _print_tracks(answered_by: str, recording: Recording, inputs: Sequence[Path], labels: Sequence[str]) -> None:
    tracks: list[tuple[Path, TrackSummary]] = []
    more = 0
    for path, track in _tracks(recording, inputs):
        if len(tracks) < MOST_ROWS:
            tracks.append((path, track))
        else:
            more += 1
    table(
        answered_by,
        ("input", "track", "seconds", "windows", "expressions, share of the windows"),
        [
            (shown(path), track.track or "", _span(track), track.windows, _shares(track, labels))
            for path, track in tracks
        ],
    )
    if more:
        click.echo(f"and {more} more tracks, which --csv and --json write")


def _tracks(recording: Recording, inputs: Sequence[Path]) -> Iterator[tuple[Path, TrackSummary]]:
    for number, path in enumerate(inputs):
        for track in recording.tracks(number):
            yield path, track


def _span(times: Window | TrackSummary) -> str:
    return "" if math.isnan(times.end_s) else f"{times.start_s:.2f}–{times.end_s:.2f}"


def _shares(track: TrackSummary, labels: Sequence[str]) -> str:
    shares = list(track.shares.items())
    words = [f"{labels[index]}\N{NO-BREAK SPACE}{share:.0%}" for index, share in shares[:_MOST_SHARES]]
    return "  ".join(words) + ("  …" if len(shares) > _MOST_SHARES else "")


def _ranked(window: Window, labels: Sequence[str]) -> str:
    """All classes with their probabilities, the most probable first."""
    return "  ".join(
        f"{labels[k]}\N{NO-BREAK SPACE}{window.probabilities[k]:.3f}" for k in np.argsort(-window.probabilities)
    )
