"""A picture of what the model saw: the face crops of every track over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dfer_deploy.clips.reading import Clip
from dfer_deploy.files import atomic_file

MAX_ROWS = 16
MAX_COLUMNS = 12
_TILE = 112
_GAP = 4
_NAMES = 84
_LINE = 16


def write_contact_sheet(path: Path, rows: Mapping[int, Sequence[tuple[float, Clip]]]) -> None:
    """Draws the crops of every track as a row of a PNG, from left to right in time.

    At most 16 tracks are drawn, those with the most crops, and of each at most 12 crops, evenly spread from the first
    to the last; the picture says how many there were.

    Args:
        path: the file; its folder exists. Written atomically.
        rows: by track, its crops uint8 [S, S, 3] with their times in seconds, in the order of time.

    Raises:
        DferDeployError: the file cannot be written.
    """
    shown = sorted(sorted(rows, key=lambda track: (-len(rows[track]), track))[:MAX_ROWS])
    columns = max((min(len(rows[track]), MAX_COLUMNS) for track in shown), default=0)
    height = _TILE + _LINE + _GAP
    sheet = Image.new(
        "RGB", (_NAMES + max(columns, 3) * (_TILE + _GAP), _LINE + 2 * _GAP + len(shown) * height), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    title = f"{len(shown)} of {len(rows)} tracks" if len(shown) < len(rows) else _counted(len(rows), "track")
    pen.text((_GAP, _GAP), title, fill="black", font=font)
    for row, track in enumerate(shown):
        crops = rows[track]
        top = _LINE + 2 * _GAP + row * height
        pen.text((_GAP, top + _TILE // 2 - _LINE), f"track {track}", fill="black", font=font)
        pen.text((_GAP, top + _TILE // 2), _counted(len(crops), "crop"), fill="black", font=font)
        count = min(len(crops), MAX_COLUMNS)
        for column in range(count):
            time_s, crop = crops[column * (len(crops) - 1) // max(1, count - 1)]
            left = _NAMES + column * (_TILE + _GAP)
            sheet.paste(Image.fromarray(crop).resize((_TILE, _TILE), Image.Resampling.BILINEAR), (left, top))
            pen.text((left, top + _TILE), f"{time_s:.2f} s", fill="black", font=font)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
