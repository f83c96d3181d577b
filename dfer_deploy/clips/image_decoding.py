"""One encoded image to RGB pixels: what a client reads from a file, and what the server gets from a thin client.

The server runs a copy of this file in an environment without dfer_deploy (``triton_models/preprocess``), so it imports
nothing but Pillow, NumPy and the standard library. That both sides run the same lines is why they agree to the bit.

What the parts of a format mean that a frame of a clip has no use for:

- EXIF's orientation is applied, as a video's display matrix is. EXIF data that cannot be read has none.
- Alpha is dropped: the stored colours count, whatever they are shown on. Profiles and gamma are not applied.
- Grey, palettes and CMYK become RGB as Pillow's ``convert`` does it.
- More than 8 bits a channel, and animations, are refused. Of a JPEG file with several pictures (MPO) the first counts.
- A file that ends early is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.3, tag 0x0112: by what an image is turned to be upright."""


class ImageError(ValueError):
    """Why an image is refused: the end of a sentence that begins with the image's name."""


@contextlib.contextmanager
def opened_image(file: Path | BinaryIO, *, formats: Sequence[str], max_pixels: int) -> Iterator[Image.Image]:
    """Return an image whose header has been read and whose pixels have not.

    Args:
        file: where its bytes are.
        formats: Pillow's names of those that are tried, whatever the file's name says. Others start other programs.
        max_pixels: width times height.

    Raises:
        ImageError: it is of no such format, too large, animated, or has more than 8 bits a channel. Also whatever goes
            wrong with the image inside the context, decoding above all.
    """
    too_large = f"expected at most {max_pixels} pixels; make it smaller"
    try:
        with Image.open(file, formats=tuple(formats)) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"has {image.width} × {image.height} pixels, {too_large}")
            if image.mode[0] in "IF" or any(str(tile[-1]).endswith(";16B") for tile in image.tile):
                raise ImageError("has more than 8 bits a channel; convert it to 8 bits")
            if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
                raise ImageError(f"is an animation; send one {image.format} image for every frame")
            yield image
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"has far too many pixels, {too_large}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot be read as an image; expected {', '.join(formats)}") from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise ImageError(f"cannot be read as an image ({error}); replace or remove it") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image: RGB, upright.

    Raises:
        Exception: whatever Pillow raises for a damaged one; ``opened_image`` turns it into an ``ImageError``.
    """
    image.load()
    orientation = None
    with contextlib.suppress(Exception):  # only the pixels decide whether an image is usable
        orientation = image.getexif().get(_ORIENTATION)
    # Pillow warns that it drops the transparency of a palette, which is what is wanted.
    image.info.pop("transparency", None)
    rgb: Image.Image = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def resized(image: Image.Image, image_size: int) -> npt.NDArray[np.uint8]:
    """Resize with Pillow's bilinear filter straight to the square, uint8 [S, S, 3] (upstream class ``GroupResize``)."""
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))
