"""Videos with known frames at known times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from dfer_deploy.clips.faces import Box, Detection

RED, GREEN = (230, 20, 20), (20, 230, 20)


def write_timed_video(
    path: Path, frames: np.ndarray[Any, Any], times_ms: Sequence[int], codec: str = "ffv1", **options: str
) -> Path:
    """A video of the frames [T, H, W, 3], each shown from its time; ffv1 in RGB is lossless."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time_ms in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path) -> None:
    """Gives an MP4 a display matrix that turns it by 90 degrees clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    unity = bytes.fromhex("00010000" + "00000000" * 3 + "00010000" + "00000000" * 3 + "40000000")
    turned = bytes.fromhex("00000000" + "00010000" + "00000000" + "ffff0000" + "00000000" * 4 + "40000000")
    place = data.find(unity, data.find(b"tkhd"))
    assert place > 0
    data[place : place + 36] = turned
    path.write_bytes(data)


def numbered(count: int, size: int = 32) -> np.ndarray[Any, Any]:
    """Frames [count, size, size, 3] that are all different, and noisy, so that no two crops are alike."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def two_squares(count: int, red: range, green: range) -> np.ndarray[Any, Any]:
    """Dark frames [count, 96, 128, 3] with a red and a green square of 24 pixels that move, while they are there."""
    frames = np.random.default_rng(1).integers(0, 60, (count, 96, 128, 3), np.uint8)
    for index, frame in enumerate(frames):
        place = abs(index % 40 - 20)
        if index in red:
            frame[10 + place :, 10 + place :][:24, :24] = RED
        if index in green:
            frame[60 - place :, 80 - place :][:24, :24] = GREEN
    return frames


class SquareDetector:
    """Finds the squares of ``two_squares``: a face detector that is never wrong."""

    def detect(self, image: np.ndarray[Any, Any]) -> list[Detection]:
        found = []
        for colour, score in ((RED, 0.9), (GREEN, 0.7)):
            rows, columns = np.nonzero(np.abs(image.astype(int) - colour).max(axis=2) < 40)
            if len(rows) > 100:
                box = Box(columns.min(), rows.min(), columns.max() + 1.0, rows.max() + 1.0)
                found.append(Detection(box, score))
        return found
