"""Encoded images of every kind: such as a client may send, and such as somebody sends who wants to do harm."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture(width: int = 61, height: int = 47, seed: int = 0) -> Image.Image:
    """Smooth colours with noise, none of whose turned and mirrored images are equal."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    smooth = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1)
    return Image.fromarray(np.clip(smooth * 0.75 + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def turned(orientation: int, image_format: str = "JPEG") -> bytes:
    """An image whose EXIF data state an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), image_format, exif=exif)


def readable_images() -> dict[str, bytes]:
    """What has to be decoded, by name."""
    rgb = picture()
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    palette = rgb.quantize(17)
    return {
        "JPEG": encoded(rgb, "JPEG"),
        "JPEG 4:4:4": encoded(rgb, "JPEG", quality=98, subsampling=0),
        "JPEG progressive": encoded(rgb, "JPEG", progressive=True),
        "JPEG grey": encoded(rgb.convert("L"), "JPEG"),
        "JPEG CMYK": encoded(rgb.convert("CMYK"), "JPEG"),
        "JPEG of two pictures (MPO)": encoded(rgb, "MPO", save_all=True, append_images=[picture(seed=1)]),
        "JPEG with damaged EXIF": encoded(rgb, "JPEG", exif=b"Exif\0\0nothing like EXIF"),
        "PNG": encoded(rgb, "PNG"),
        "PNG grey": encoded(rgb.convert("L"), "PNG"),
        "PNG 1 bit": encoded(rgb.convert("1"), "PNG"),
        "PNG palette": encoded(palette, "PNG"),
        "PNG palette of 2 bits": encoded(rgb.quantize(4), "PNG", bits=2),
        "PNG palette with a transparent colour": encoded(palette, "PNG", transparency=3),
        "PNG palette with alpha": encoded(palette, "PNG", transparency=bytes(range(17))),
        "PNG grey with alpha": encoded(rgba.convert("LA"), "PNG"),
        "PNG alpha": encoded(rgba, "PNG"),
        "PNG interlaced": interlaced_png(np.asarray(rgb)),
        "WebP lossy": encoded(rgb, "WEBP", quality=70),
        "WebP lossless": encoded(rgb, "WEBP", lossless=True),
        "WebP alpha": encoded(rgba, "WEBP", lossless=True, exact=True),
        "one pixel": encoded(picture(1, 1), "PNG"),
        "a line": encoded(picture(900, 1), "JPEG"),
        "larger": encoded(picture(1280, 720), "JPEG"),
        **{f"JPEG turned {orientation}": turned(orientation) for orientation in range(1, 9)},
        "PNG turned": turned(6, "PNG"),
        "WebP turned": turned(8, "WEBP"),
    }


def refused_images() -> dict[str, tuple[bytes, str]]:
    """What must not be decoded, by name, and a part of the reason."""
    rgb = picture()
    frames = [picture(seed=seed) for seed in range(1, 4)]
    sixteen_bits = png(np.full((4, 4), 30_000, ">u2"), depth=16, colour=0)
    sixteen_bits_rgb = png(np.full((4, 4, 3), 30_000, ">u2"), depth=16, colour=2)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "0" * (64 << 20), zip=True)
    many_texts = PngImagePlugin.PngInfo()
    for index in range(100):
        many_texts.add_text(f"comment {index}", "0" * 1_000_000, zip=True)
    profile = zlib.compress(bytes(64 << 20))
    unreadable = "cannot be read as an image"
    return {
        "65535 x 65535": (png(np.zeros((1, 1), np.uint8), size=(65535, 65535)), "too many pixels"),
        "20000 x 20000": (png(np.zeros((1, 1), np.uint8), size=(20_000, 20_000)), "too many pixels"),
        "9000 x 9000": (encoded(Image.new("1", (9000, 9000)), "PNG"), "9000 × 9000 pixels, expected at most"),
        "12000 x 9000": (png(np.zeros((1, 1), np.uint8), size=(12_000, 9000)), "pixels, expected at most"),
        "no pixels": (png(np.zeros((1, 1), np.uint8), size=(0, 7)), unreadable),
        "text bomb": (encoded(rgb, "PNG", pnginfo=text), unreadable),
        "many text bombs": (encoded(rgb, "PNG", pnginfo=many_texts), unreadable),
        "profile bomb": (
            png(np.asarray(rgb), colour=2, before=chunk(b"iCCP", b"profile\0\0" + profile)), unreadable
        ),
        "truncated JPEG": (encoded(rgb, "JPEG")[:-300], "truncated"),
        "truncated PNG": (encoded(rgb, "PNG")[:-900], "truncated"),
        "truncated WebP": (encoded(rgb, "WEBP")[:-300], unreadable),
        "only a header": (encoded(rgb, "JPEG")[:20], unreadable),
        "animated WebP": (encoded(rgb, "WEBP", save_all=True, append_images=frames), "is an animation"),
        "animated PNG": (encoded(rgb, "PNG", save_all=True, append_images=frames), "is an animation"),
        "16 bits grey": (sixteen_bits, "more than 8 bits"),
        "16 bits": (sixteen_bits_rgb, "more than 8 bits"),
        "TIFF": (encoded(rgb, "TIFF"), unreadable),
        "EPS": (encoded(rgb, "EPS"), unreadable),
        "GIF": (encoded(rgb, "GIF"), unreadable),
        "BMP": (encoded(rgb, "BMP"), unreadable),
        "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", unreadable),
        "noise": (np.random.default_rng(0).bytes(5000), unreadable),
        "one byte": (b"\xff", unreadable),
    }  # fmt: skip


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    pixels: np.ndarray, *, size: tuple[int, int] | None = None, depth: int = 8, colour: int = 0, before: bytes = b""
) -> bytes:
    """A PNG file whose header may state another size than its pixels have."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return _png_file(size or (width, height), depth, colour, interlaced=False, rows=rows, before=before)


def interlaced_png(pixels: np.ndarray) -> bytes:
    """RGB pixels as Adam7 orders them (PNG specification, section 8.2)."""
    rows = b""
    for y, x, step_y, step_x in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
    ):  # fmt: skip
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::step_y, x::step_x])
    return _png_file((pixels.shape[1], pixels.shape[0]), 8, 2, interlaced=True, rows=rows)


def _png_file(
    size: tuple[int, int], depth: int, colour: int, *, interlaced: bool, rows: bytes, before: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    data = chunk(b"IDAT", zlib.compress(rows))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + before + data + chunk(b"IEND", b"")
