"""Decoding of one encoded image to RGB pixels, for the client and for the server.

The server runs a copy of this file in an environment without dfer_deploy (``triton_models/preprocess``). The file
therefore imports only Pillow, NumPy and the standard library. Both sides run the same code, so their results are equal
to the bit.

Features of the formats beyond plain RGB:

- EXIF's orientation is applied, as a video's display matrix is. EXIF data that cannot be read is ignored.
- The alpha channel is dropped, and the stored colours are used. Colour profiles and gamma are not applied.
- Grey, palettes and CMYK are converted to RGB with Pillow's ``convert``.
- More than 8 bits a channel, and animations, are refused. A JPEG file with several pictures (MPO) is read as its first.
- A truncated file is refused.
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
"""The transposition that makes an image upright, by the value of EXIF 2.3's tag 0x0112."""


class ImageError(ValueError):
    """The reason why an image is refused, as the end of a sentence that begins with the image's name."""


@contextlib.contextmanager
def opened_image(file: Path | BinaryIO, *, formats: Sequence[str], max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and read its header, but not its pixels.

    Args:
        file: the file, or its path.
        formats: Pillow's names of the formats to try, regardless of the file's name. Some of Pillow's other formats
            start external programs.
        max_pixels: limit of width times height.

    Raises:
        ImageError: the image is of another format, too large, animated, or has more than 8 bits a channel. Errors
            inside the context, such as those of decoding, are raised as ``ImageError`` too.
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
    """Decode an opened image to upright RGB.

    Raises:
        Exception: Pillow's exception for a damaged image, which ``opened_image`` turns into an ``ImageError``.
    """
    image.load()
    orientation = None
    with contextlib.suppress(Exception):  # an image with damaged EXIF data is still usable
        orientation = image.getexif().get(_ORIENTATION)
    # Without this, Pillow warns that it drops the transparency of a palette, which is intended.
    image.info.pop("transparency", None)
    rgb: Image.Image = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def resized(image: Image.Image, image_size: int) -> npt.NDArray[np.uint8]:
    """Resize with Pillow's bilinear filter straight to the square, uint8 [S, S, 3] (upstream class ``GroupResize``)."""
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))
