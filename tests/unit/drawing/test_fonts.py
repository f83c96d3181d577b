"""Which font draws class names; fonts of other writings are made here, since few machines have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dfer_deploy.drawing import fonts
from dfer_deploy.drawing.fonts import Letters
from dfer_deploy.drawing.overlay import Overlay


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    fonts._files_for.cache_clear()
    yield
    fonts._files_for.cache_clear()


def written_font(path: Path, characters: str, ascent: int = 880) -> Path:
    """A font in which every character is a triangle of another width."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    names = [".notdef", *(f"u{ord(character):04X}" for character in characters)]
    glyphs = {}
    for place, name in enumerate(names):
        pen = pens.TTGlyphPen(None)
        pen.moveTo((50, 0))
        pen.lineTo((50, 800))
        pen.lineTo((100 + 800 * place // len(names), 0))
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): f"u{ord(character):04X}" for character in characters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    builder.setupHorizontalHeader(ascent=ascent, descent=-120)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def drawn(text: str, characters: str) -> Image.Image:
    """The text, where all characters might be drawn."""
    picture = Image.new("RGB", (400, 60), "black")
    Letters(characters, 30).draw(ImageDraw.Draw(picture), (10, 5), text, "white")
    return picture


def families(monkeypatch: pytest.MonkeyPatch, text: str, characters: str) -> list[tuple[str, str]]:
    """Which pieces of the text are drawn with which font."""
    pieces: list[tuple[str, str]] = []

    def watched(
        self: ImageDraw.ImageDraw, place: object, run: str, *, font: ImageFont.FreeTypeFont, **_: object
    ) -> None:
        pieces.append((run, str(font.getname()[0])))

    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", watched)
        drawn(text, characters)
    return pieces


def test_english_is_drawn_as_pillow_does_it(capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.new("RGB", (400, 60), "black")
    font = ImageFont.load_default(30)
    ImageDraw.Draw(picture).text((10, 5), "1: fear\N{NO-BREAK SPACE}0.77", fill="white", font=font)
    assert drawn("1: fear\N{NO-BREAK SPACE}0.77", "1: fear\N{NO-BREAK SPACE}0.77") == picture
    assert Letters("fear", 30).length("fear") == font.getlength("fear")
    assert capsys.readouterr().err == ""


def test_the_first_font_that_has_everything_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        written_font(tmp_path / f"{name}.ttf", characters)
        for name, characters in (("half", "高兴ab"), ("whole", "高兴悲伤怒ab"), ("later", "高兴悲伤怒ab"))
    ]
    monkeypatch.setattr(fonts, "_FILES", ("none of this machine.ttf", *map(str, files)))
    assert families(monkeypatch, "a高 b", "ab高兴悲伤") == [("a高 b", "whole")]
    assert families(monkeypatch, "a高 b", "ab高兴") == [("a高 b", "half")]
    assert drawn("高", "高兴") != drawn("兴", "高兴")
    assert capsys.readouterr().err == ""


def test_where_none_has_everything_several_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        written_font(tmp_path / f"{name}.ttf", characters, ascent)
        for name, characters, ascent in (("useless", "ab", 3000), ("glad", "高兴", 880), ("sad", "高悲伤", 880))
    ]
    monkeypatch.setattr(fonts, "_FILES", tuple(map(str, files)))
    own = str(ImageFont.load_default(30).getname()[0])
    text, characters = "1: 高兴悲伤 0.5", "高兴悲伤0123456789.: "
    assert families(monkeypatch, text, characters) == [
        ("1: ", own),
        ("高兴", "glad"),
        ("悲伤", "sad"),
        (" 0.5", own),
    ]
    assert capsys.readouterr().err == ""
    # The pieces stand beside each other, over the length that is stated.
    columns = np.nonzero(np.asarray(drawn(text, characters)).any(axis=(0, 2)))[0]
    letters = Letters(characters, 30)
    assert letters.length("高兴") == 60
    assert columns.max() == pytest.approx(10 + letters.length(text), abs=4)
    pieces = np.nonzero(np.asarray(drawn("高兴悲伤", characters)).any(axis=(0, 2)))[0]
    assert pieces.max() > 10 + 90
    # A font that brings nothing moves nothing.
    before = drawn(text, characters)
    fonts._files_for.cache_clear()
    monkeypatch.setattr(fonts, "_FILES", tuple(map(str, files[1:])))
    assert drawn(text, characters) == before


def test_where_no_font_has_them_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fonts, "_FILES", ())
    for size in ((400, 300), (1200, 900)):
        overlay = Overlay(("高兴", "sad"), size)
        picture = Image.new("RGB", size)
        overlay.draw(picture, {0: (0, 0, 0, 0)}, {0: np.array([0.9, 0.1], np.float32)})
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("no font was found that has the characters 兴高, so pictures show boxes") == 1
