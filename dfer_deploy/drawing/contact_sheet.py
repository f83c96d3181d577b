"""A contact sheet of the face crops that the model saw, for every track over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dfer_deploy.clips.reading import Clip
from dfer_deploy.files import atomic_file

MAX_ROWS = 16
MAX_COLUMNS = 12
_TILE = 112
_GAP = 4
_NAMES = 112
_LINE = 16


@dataclass(frozen=True)
class CropRow:
    """The crops of one track.

    Attributes:
        crops: times in seconds and crops uint8 [S, S, 3], in the order of time and equally far apart.
        count: number of all crops of the track, of which ``crops`` may be a part.
    """

    crops: Sequence[tuple[float, Clip]]
    count: int


def write_contact_sheet(path: Path, rows: Mapping[int, CropRow], tracks: int) -> None:
    """Draw the crops of every track as a row of a PNG, ordered by time from left to right.

    At most 16 tracks are drawn, those with the most crops. At most 12 crops of each are drawn: the first one, and then
    every nth, so that they are equally far apart in time. The picture states the total numbers.

    Args:
        path: file to write, atomically; its folder must exist.
        rows: crops by track.
        tracks: number of all tracks, of which ``rows`` may be a part.

    Raises:
        DferDeployError: the file cannot be written.
    """
    drawn = sorted(sorted(rows, key=lambda track: (-rows[track].count, track))[:MAX_ROWS])
    chosen = {track: _spread(rows[track].crops) for track in drawn}
    columns = max((len(crops) for crops in chosen.values()), default=0)
    height = _TILE + _LINE + _GAP
    sheet = Image.new(
        "RGB", (_NAMES + max(columns, 3) * (_TILE + _GAP), _LINE + 2 * _GAP + len(drawn) * height), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    title = f"{len(drawn)} of {tracks} tracks" if len(drawn) < tracks else _counted(tracks, "track")
    pen.text((_GAP, _GAP), title, fill="black", font=font)
    for row, (track, crops) in enumerate(chosen.items()):
        top = _LINE + 2 * _GAP + row * height
        count = rows[track].count
        caption = [f"track {track}" if track else "whole picture", _counted(count, "crop")]
        if len(crops) < count:
            caption.append(f"{len(crops)} of them shown")
        for line, text in enumerate(caption):
            pen.text((_GAP, top + _TILE // 2 + (line - 1) * _LINE), text, fill="black", font=font)
        for column, (time_s, crop) in enumerate(crops):
            left = _NAMES + column * (_TILE + _GAP)
            sheet.paste(Image.fromarray(crop).resize((_TILE, _TILE), Image.Resampling.BILINEAR), (left, top))
            pen.text((left, top + _TILE), f"{time_s:.2f} s", fill="black", font=font)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _spread(crops: Sequence[tuple[float, Clip]]) -> Sequence[tuple[float, Clip]]:
    """At most twelve of the crops, equally far apart from the first one on."""
    return crops[:: -(-len(crops) // MAX_COLUMNS)] if crops else crops


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
