"""Sources of live frames: a camera, or a video file that is played at its own speed."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from dfer_deploy.clips.faces import Image
from dfer_deploy.clips.prefetch import Buffer, prefetched
from dfer_deploy.clips.reading import DecodedFrame, is_address
from dfer_deploy.clips.timed import check_interval, timed_frames
from dfer_deploy.errors import ClipError
from dfer_deploy.live.newest import newest

_AHEAD = 4
"""Limits the frames of a file that are decoded ahead if every frame is answered."""

_CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's input devices (its documentation, "Input Devices"): Video4Linux2, AVFoundation, DirectShow."""


@dataclass(frozen=True)
class LiveFrame:
    """One frame.

    Attributes:
        time_s: seconds since the first frame: elapsed time for a camera, presentation time for a file.
        arrived_s: value of ``time.monotonic()`` when the frame arrived.
        image: uint8 [H, W, 3], RGB in [0, 255], upright.
    """

    time_s: float
    arrived_s: float
    image: Image


class LiveFrames:
    """An iterable over the frames to answer, one interval apart."""

    def __init__(self, frames: Iterator[LiveFrame], buffer: Buffer[LiveFrame] | None = None) -> None:
        self._frames, self._buffer = frames, buffer

    @property
    def dropped(self) -> int:
        """The number of frames that newer ones replaced, because the answers took longer than the interval."""
        return 0 if self._buffer is None else self._buffer.dropped

    def __iter__(self) -> Iterator[LiveFrame]:
        return self._frames


@contextlib.contextmanager
def live_frames(source: str, interval_s: float, *, fast: bool = False) -> Iterator[LiveFrames]:
    """Open a source. A thread reads it until the context ends.

    Args:
        source: a camera's number, device or name, or the path of a video file.
        interval_s: seconds from one frame to the next, 0.01 to 60.
        fast: answer every frame of a file, as fast as possible. Otherwise, and always for a camera, a frame is dropped
            if it has not been taken when the next one arrives.

    Raises:
        DferDeployError: the source does not exist or cannot be read, or the interval is out of range.
    """
    check_interval(interval_s)
    camera = camera_of(source, sys.platform)
    if camera is None and fast:
        with prefetched(timed_frames(Path(source), interval_s), _AHEAD) as played:
            yield LiveFrames(LiveFrame(f.time_s, time.monotonic(), f.image) for f in played)
        return
    stopped = threading.Event()
    if camera is None:
        frames = _at_its_own_speed(Path(source), interval_s, stopped)
    else:
        frames = camera_frames(*camera, interval_s)
    with newest(frames, stopped) as buffer:
        yield LiveFrames(buffer.taken(), buffer)


def is_camera(source: str) -> bool:
    """Check whether a source is a camera of this system rather than a file.

    Raises:
        DferDeployError: the source is neither a camera nor a file.
    """
    return camera_of(source, sys.platform) is not None


def camera_of(source: str, platform: str) -> tuple[str, str] | None:
    """Find FFmpeg's name of a camera and FFmpeg's input device for it.

    Args:
        source: ``0`` or ``/dev/video0`` on Linux; a number or a name on macOS; a name on Windows.
        platform: value of ``sys.platform``.

    Returns:
        The name and the input device, or None for a file.

    Raises:
        DferDeployError: the source is neither a camera nor a file.
    """
    device = _CAMERA_FORMATS.get(platform)
    is_number = source.isascii() and source.isdigit()
    if device == "v4l2" and (is_number or source.startswith("/dev/")):
        path = f"/dev/video{source}" if is_number else source
        if not os.path.exists(path):  # noqa: PTH110 - a device's name is not a path of ours
            raise ClipError(f"there is no camera {path}; expected one of /dev/video*, or a video file")
        return path, device
    if Path(source).exists():
        return None
    if device == "avfoundation":
        return source, device
    if device == "dshow":
        return f"video={source}", device
    if is_address(source):
        raise ClipError(f"{source} is an address, expected a camera or a video file; download it first")
    raise ClipError(f"{source} does not exist; expected a camera's number, its device, or a video file")


def camera_frames(name: str, device: str, interval_s: float) -> Iterator[LiveFrame]:
    """Yield the frames of a camera at 0, ``interval_s``, 2 · ``interval_s``, … in real time.

    Args:
        name: FFmpeg's name of the camera.
        device: FFmpeg's input device.
        interval_s: seconds from one frame to the next. Of a slower camera, every frame is taken.

    Raises:
        DferDeployError: the camera cannot be opened, or fails.
    """
    try:
        with av.open(name, format=device) as container:
            start_s = next_s = -math.inf
            for frame in _decoded(container):
                now = time.monotonic()
                if now < next_s:
                    continue
                if start_s == -math.inf:  # a camera needs a while for its first frame
                    start_s = next_s = now
                # A slow camera misses steps, which are not made up for.
                next_s += interval_s * (1 + (now - next_s) // interval_s)
                yield LiveFrame(now - start_s, now, np.asarray(DecodedFrame(frame).upright()))
    except av.FFmpegError as error:
        raise ClipError(
            f"the camera {name} cannot be read ({error.strerror or type(error).__name__}); is it connected, allowed "
            "and not in use by another program?"
        ) from error


def _decoded(container: Any) -> Iterator[av.VideoFrame]:
    if not container.streams.video:
        raise ClipError(f"{container.name} has no video stream; expected a camera")
    for packet in container.demux(container.streams.video[0]):
        # A damaged packet loses its own frame only.
        with contextlib.suppress(av.error.InvalidDataError):
            yield from packet.decode()


def _at_its_own_speed(video: Path, interval_s: float, stopped: threading.Event) -> Iterator[LiveFrame]:
    start_s: float | None = None
    for frame in timed_frames(video, interval_s):
        now = time.monotonic()
        start_s = now if start_s is None else start_s
        if stopped.wait(max(0.0, start_s + frame.time_s - now)):
            return
        yield LiveFrame(frame.time_s, time.monotonic(), frame.image)
