"""Fonts for texts in any script, for pictures that Pillow draws, as far as this machine has them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

from PIL import ImageDraw, ImageFont

from dfer_deploy.console import warn

_FILES = (
    "DejaVuSans.ttf",
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc"),
    *("Arial Unicode.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf"),
)
"""Fonts with many scripts: first those of Linux, then those of macOS and Windows. Pillow searches the system's folders.
Pillow's own font is tried before them, but covers little more than English."""

_NO_CHARACTER = "\uffff"
"""A code point that Unicode never assigns, so every font draws its replacement for a missing character."""

_TRIED_SIZE = 40


class Letters:
    """Draws texts of one size.

    Attributes:
        line: height of a line in pixels.
    """

    def __init__(self, text: str, size: int) -> None:
        """Choose one font that has all characters, or else several.

        Characters that none of the fonts has are drawn as boxes. A warning is printed once for each text.

        Args:
            text: all characters that will be drawn.
            size: font size in pixels.
        """
        self._fonts = [_opened(file, size) for file in _files_for(text)]
        self._font_of: dict[str, Any] = {}
        self._baseline = max(font.getmetrics()[0] for font in self._fonts)
        self.line = int(self._fonts[0].getbbox("Ág")[3])

    def length(self, text: str) -> float:
        """Measure the width of a text in pixels."""
        return float(sum(font.getlength(run) for font, run in self._runs(text)))

    def draw(self, pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: str) -> None:
        """Draw a text with the upper left corner of its line at ``place``."""
        x, y = place
        for font, run in self._runs(text):
            pen.text((x, y + self._baseline), run, fill=colour, font=font, anchor="ls")
            x += font.getlength(run)

    def _runs(self, text: str) -> Iterator[tuple[Any, str]]:
        """Pieces of the text with their fonts."""
        for character in text:
            if character not in self._font_of:
                having = (font for font in self._fonts if not _lacking(font, character))
                self._font_of[character] = next(having, self._fonts[0])
        for font, run in itertools.groupby(text, self._font_of.__getitem__):
            yield font, "".join(run)


@functools.cache
def _files_for(text: str) -> tuple[str | None, ...]:
    """The files of the fonts to use; None is Pillow's own."""
    lacking: dict[str | None, set[str]] = {}
    for file in (None, *_FILES):
        try:
            lacking[file] = _lacking(_opened(file, _TRIED_SIZE), text)
        except OSError:  # it is not there
            continue
        if not lacking[file]:
            return (file,)
    chosen, missing = [], set(text)
    for file, lacks in lacking.items():
        if missing - lacks:
            chosen.append(file)
            missing &= lacks
    if missing:
        warn(
            f"no font was found that has the characters {''.join(sorted(missing))}, so pictures show boxes instead; "
            "install one, such as Noto Sans CJK"
        )
    return tuple(chosen)


def font_paths(text: str) -> list[str]:
    """List the paths of this machine's fonts for the characters of a text that Pillow's own font lacks."""
    return [str(_opened(file, _TRIED_SIZE).path) for file in _files_for(text) if file is not None]


def _opened(file: str | None, size: int) -> Any:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


def _lacking(font: Any, text: str) -> set[str]:
    """The characters that a font would draw as boxes."""
    box = bytes(font.getmask(_NO_CHARACTER))
    return {one for one in set(text) if one.isprintable() and bytes(font.getmask(one)) == box}
