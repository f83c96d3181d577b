"""Encoded images against Pillow's own functions, and what the parts of the formats mean."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from encoded_images import encoded, picture, readable_images, refused_images, turned
from PIL import Image, ImageOps

from dfer_deploy.clips.image_decoding import ImageError, opened_image, resized, upright_rgb
from dfer_deploy.clips.reading import image_from_file
from dfer_deploy.errors import ClipError

READABLE = readable_images()
REFUSED = refused_images()


def decoded(image: bytes) -> Image.Image:
    with opened_image(io.BytesIO(image), formats=("JPEG", "PNG", "WEBP"), max_pixels=40_000_000) as opened:
        return upright_rgb(opened)


@pytest.mark.parametrize("name", READABLE)
def test_pixels_are_pillows(name: str) -> None:
    with Image.open(io.BytesIO(READABLE[name])) as image:
        image.load()
        image.info.pop("transparency", None)
        expected = ImageOps.exif_transpose(image).convert("RGB")
    answer = decoded(READABLE[name])
    assert answer.mode == "RGB"
    assert np.array_equal(np.asarray(answer), np.asarray(expected))
    assert (resized(answer, 24) == np.asarray(expected.resize((24, 24), Image.Resampling.BILINEAR))).all()


def test_every_orientation_ends_upright() -> None:
    """The stored pixels are turned the other way round first, without loss, so that all of them must be equal."""
    upright = np.asarray(picture())
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG", exif=exif)
        assert np.array_equal(np.asarray(decoded(image)), upright), orientation


def test_an_orientation_that_exif_does_not_know_is_none() -> None:
    assert decoded(turned(9)).size == decoded(turned(1)).size == picture().size


def test_alpha_is_dropped_and_not_composed() -> None:
    image = Image.new("RGBA", (3, 3), (200, 100, 50, 0))
    assert np.asarray(decoded(encoded(image, "PNG"))).reshape(-1, 3).tolist() == [[200, 100, 50]] * 9


def test_exif_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which damage Pillow minds depends on its version."""

    def fail(image: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert decoded(turned(6)).size == picture().size


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "BMP"])
def test_a_file_is_refused_as_the_server_does(tmp_path: Path, name: str) -> None:
    image, said = REFUSED[name]
    with pytest.raises(ImageError) as refused:
        decoded(image)
    assert said in str(refused.value)
    if "9000" in name:  # a client may read larger ones: they are its own
        return
    (tmp_path / "image").write_bytes(image)
    with pytest.raises(ClipError, match=r"image (has|is|cannot)"):
        image_from_file(tmp_path / "image")
