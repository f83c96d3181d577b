"""Clips from videos and frame folders, with the reference implementation's sampling and resizing.

Frames are resized to the square with Pillow's bilinear filter, without keeping the aspect ratio (upstream class
``GroupResize``).
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer
from PIL import Image

from dfer_deploy.clips.image_decoding import ImageError, opened_image, upright_rgb
from dfer_deploy.clips.image_decoding import resized as resized
from dfer_deploy.clips.sampling import Indices, sample_indices
from dfer_deploy.console import warn
from dfer_deploy.errors import ClipError

Clip = npt.NDArray[np.uint8]
"""uint8 [T, S, S, 3], RGB in [0, 255]."""

Sampler = Callable[[int], Indices]
"""Maps a number of frames to the indices of the chosen ones, non-decreasing."""

Decoder = Callable[[Path], "Iterator[DecodedFrame]"]
"""Maps the path of a video to all of its frames, in the order of presentation."""

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")

_VIDEO_FORMATS = (
    "3g2,3gp,asf,avi,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,nut,ogg,wav,webm,"
    "yuv4mpegpipe"
)
"""The formats that FFmpeg may read. Its others include playlists, which open other files and addresses."""

_SHARE_OF_STATED_TIME = 0.9

MAX_PIXELS = 64_000_000
"""Limits the pixels of one frame (8K video has 33 million)."""


def clip_from_path(
    path: Path, image_size: int, sampler: Sampler = sample_indices, decoded: Decoder | None = None
) -> Clip:
    """Read a clip from a frame folder or a video file.

    Args:
        path: a folder of images, one per frame, or a video file.
        image_size: S, the side of the model's square input in pixels.
        sampler: chooses the frames, by default the 16 of the test-time clip.
        decoded: yields all frames of a video, by default ``decoded_frames``. A wrapper can observe the frames.

    Returns:
        uint8 [16, S, S, 3]; with another sampler, as many frames as it chooses.

    Raises:
        DferDeployError: the path does not exist, holds no frames, or a frame cannot be read.
    """
    try:
        if path.is_dir():
            return clip_from_folder(path, image_size, sampler)
        if path.is_file():
            return clip_from_video(path, image_size, sampler, decoded)
    except OSError as error:  # no permission, a name that is too long, a disk that fails
        raise ClipError(f"{path} cannot be read ({error.strerror or error}); check the path") from error
    if is_address(path):
        raise ClipError(f"{path} looks like an address; download it first, and give the file")
    state = "is neither a file nor a folder" if path.exists() else "does not exist"
    raise ClipError(f"{path} {state}; expected a video file or a folder of frames")


def is_address(path: str | Path) -> bool:
    """Check whether a text looks like an address. As a ``Path``, an address has only one slash after its scheme."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) is not None


def clip_from_folder(folder: Path, image_size: int, sampler: Sampler = sample_indices) -> Clip:
    """Read a clip from a folder of images; arguments, result and errors as in ``clip_from_path``."""
    paths = frame_paths(folder)
    if not paths:
        raise ClipError(f"{folder} has no images; expected one file per frame ({', '.join(sorted(IMAGE_SUFFIXES))})")
    wanted = sampler(len(paths)).tolist()
    frames = {index: resized(image_from_file(paths[index]), image_size) for index in sorted(set(wanted))}
    return np.stack([frames[index] for index in wanted])


def clip_from_video(
    video: Path, image_size: int, sampler: Sampler = sample_indices, decoded: Decoder | None = None
) -> Clip:
    """Read a clip from a video file; arguments, result and errors as in ``clip_from_path``.

    Only the chosen frames are converted and kept, so memory does not grow with the length of the video.
    """
    decoded = decoded or decoded_frames
    claimed = packets_in_video(video)
    wanted = sampler(claimed)
    count, frames = _frames_at(decoded(video), image_size, wanted)
    if count != claimed:  # damaged or unusual streams: fewer or more frames come out than packets went in
        wanted = sampler(count)
        _, frames = _frames_at(decoded(video), image_size, wanted)
    return np.stack([frames[index] for index in wanted.tolist()])


def frame_paths(folder: Path) -> list[Path]:
    """List the images in a folder in the order of time: by name, with numbers compared as numbers.

    The reference implementation sorts names as text, which puts ``10.jpg`` before ``2.jpg``. For the zero-padded names
    of the released data sets, both orders are the same.
    """
    paths = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
    return sorted(paths, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Build a sort key that compares runs of digits as numbers. Equal ones (01 and 1) are ordered by the name."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in pieces], name


def image_from_file(path: Path) -> Image.Image:
    """Read an image file as upright RGB; see ``image_decoding`` for the handling of its format.

    Raises:
        DferDeployError: the file cannot be read, has more than 64 million pixels or 8 bits a channel, or is an
            animation.
    """
    try:
        with opened_image(path, formats=_IMAGE_FORMATS, max_pixels=MAX_PIXELS) as image:
            return upright_rgb(image)
    except (ImageError, MemoryError) as error:
        raise ClipError(f"{path} {error or 'does not fit into the memory'}") from error


def packets_in_video(video: Path) -> int:
    """Count the packets of a video without decoding them. In nearly all files, each packet is one frame.

    Raises:
        DferDeployError: the video has no packets, or ends before 90 % of the duration that its header states.
    """
    packets, end_s = 0, 0.0
    with open_video(video) as (container, stream):
        for packet in container.demux():
            if packet.size and packet.stream is stream:
                packets += 1
            if packet.size and packet.pts is not None and packet.time_base is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        start_s, stated_s = ((value or 0) / av.time_base for value in (container.start_time, container.duration))
    if not packets:
        raise ClipError(f"{video} has a video stream without frames; is it damaged?")
    end_s -= min(start_s, 0.0)  # Matroska's duration counts from 0 even where its first frame comes later
    if end_s < _SHARE_OF_STATED_TIME * stated_s:
        raise ClipError(
            f"{video} is truncated: it ends after {end_s:.1f} s of the {stated_s:.1f} s that it states; copy it again"
        )
    return packets


@dataclass(frozen=True)
class DecodedFrame:
    """A frame as a video stores it.

    Attributes:
        frame: decoded frame, in any pixel format and before rotation.
        pixel_aspect: width of a pixel divided by its height, which is not 1 for DVDs and some cameras.
    """

    frame: av.VideoFrame
    pixel_aspect: float = 1.0

    @property
    def shown_width(self) -> int:
        """The width of the frame in square pixels, before rotation."""
        return max(1, round(self.frame.width * self.pixel_aspect))

    def upright(self) -> Image.Image:
        """Convert to an RGB image of square pixels, rotated and mirrored by the file's display matrix."""
        image: Image.Image = self.frame.to_image()  # type: ignore[no-untyped-call]
        if self.shown_width != image.width:
            image = image.resize((self.shown_width, image.height), Image.Resampling.BICUBIC)
        mirrored, degrees = _orientation(self.frame)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.rotate(degrees, expand=True) if degrees % 360 else image


def decoded_frames(video: Path) -> Iterator[DecodedFrame]:
    """Yield all frames of a video that can be decoded, in the order of presentation.

    A damaged packet loses its own frame only. A warning at the end states the number of damaged frames.

    Raises:
        DferDeployError: the file cannot be read as a video, or none of its frames can be decoded.
    """
    count = damaged = 0
    with open_video(video) as (container, stream):
        stream.thread_type = "AUTO"
        pixel_aspect = float(stream.sample_aspect_ratio or 1)
        packets = iter(container.demux(stream))
        while True:
            try:
                decoded = next(packets).decode()
            except StopIteration:
                break
            except av.error.EOFError:
                break
            except av.FFmpegError:
                damaged += 1
                continue
            for frame in decoded:
                found = DecodedFrame(frame, pixel_aspect)
                _check_size(video, found.shown_width, frame.height)  # a stream may change its size
                damaged += frame.is_corrupt
                count += 1
                yield found
    if count == 0:
        raise ClipError(f"{video} has no frame that can be decoded; is it damaged?")
    if damaged:
        _warn_once(f"{video} is damaged: {damaged} of its frames could not be decoded or are wrong")


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """Print a warning once, although a video may be decoded several times."""
    warn(message)


def _orientation(frame: av.VideoFrame) -> tuple[bool, float]:
    """Return whether to mirror the frame left to right, and by how many degrees to turn it then, counter-clockwise.

    The display matrix maps [x, y, 1] to the place where the pixel is shown. Source: FFmpeg, libavutil/display.h.
    """
    # ``frame.side_data`` makes a reference cycle of frame and container. Pictures, and the threads that converted them,
    # would stay until Python collects cycles, hundreds of frames later.
    matrix: Any = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]  # its stub lacks it
    if matrix is None:
        return False, 0.0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, 5).tolist()
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return mirrored, float(round(-math.degrees(math.atan2(b, a)), 3))


def _frames_at(decoded: Iterator[DecodedFrame], image_size: int, indices: Indices) -> tuple[int, dict[int, Clip]]:
    """The number of frames that can be decoded, and those at ``indices``, resized."""
    wanted = set(indices.tolist())
    frames: dict[int, Clip] = {}
    count = 0
    for index, frame in enumerate(decoded):
        count = index + 1
        if index in wanted:
            frames[index] = resized(frame.upright(), image_size)
    return count, frames


@contextlib.contextmanager
def open_video(video: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video file: its container and its first video stream.

    Raises:
        DferDeployError: the file is not a video or has no video stream, its frames have more than ``MAX_PIXELS``
            pixels, or reading fails inside the context.
    """
    try:
        with av.open(
            f"file:{video.absolute()}", metadata_errors="ignore", options={"format_whitelist": _VIDEO_FORMATS}
        ) as container:
            # Embedded cover art is ignored.
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise ClipError(f"{video} has no video stream; expected a video file")
            _check_size(video, streams[0].width, streams[0].height)
            yield container, streams[0]
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        if video.is_file() and not video.stat().st_size:
            raise ClipError(f"{video} is empty (0 bytes); expected a video file") from error
        if video.suffix.lower() in IMAGE_SUFFIXES:
            raise ClipError(
                f"{video} is a picture, expected a video or a folder; put a clip's pictures into a folder and give that"
            ) from error
        raise ClipError(
            f"{video} cannot be read as a video ({reason}); it is none, or it is damaged or truncated"
        ) from error


def _check_size(video: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ClipError(f"{video} has {width} × {height} pixels, expected at most {MAX_PIXELS}; scale it down")
