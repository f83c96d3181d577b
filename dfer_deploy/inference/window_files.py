"""Windows of a recording as CSV and JSON."""

from __future__ import annotations

import csv
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfer_deploy.files import atomic_file, json_text
from dfer_deploy.inference.recording import Recording


def write_csv(path: Path, recording: Recording, inputs: Sequence[Path]) -> None:
    """Write one line for each window, atomically. The times of an input without times are empty.

    Texts are quoted. An apostrophe precedes those that a spreadsheet would read as a formula (OWASP, "CSV Injection").
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
                        *window.times_s,
                        window.frames,
                        round(window.detection, 4),
                        _cell(window.expression),
                        *(round(float(value), 6) for value in (window.confidence, *window.probabilities)),
                    ]
                )


def write_results(path: Path, recording: Recording, inputs: Sequence[Path], about: dict[str, Any]) -> None:
    """Write ``about`` with a list ``results`` of all windows as JSON, atomically and one window at a time.

    The text of all windows at once would need thirteen times the memory of the recording.
    """
    before, after = json_text(about | {"results": []}).split('"results": []')
    separator = "\n"
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{before}"results": [')
        for number, source in enumerate(inputs):
            for window in recording.windows(number):
                text = json_text({"input": shown(source), **window.to_dict()}).rstrip("\n")
                file.write(separator + textwrap.indent(text, "    "))
                separator = ",\n"
        file.write(("" if separator == "\n" else "\n  ") + f"]{after}")


def shown(path: Path) -> str:
    """Convert a path to text. Bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def _cell(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
