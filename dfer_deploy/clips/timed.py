"""The frames of a video by presentation time, in steps of the model's frame interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from dfer_deploy.clips.reading import DecodedFrame, decoded_frames, open_video, packets_in_video
from dfer_deploy.errors import ClipError
from dfer_deploy.specs import require

ROUNDING_S = 0.001
"""Tolerance of frame times, in seconds. Matroska rounds them to milliseconds."""

MIN_INTERVAL_S = 0.01
"""The shortest frame interval, in seconds; 100 frames a second are more than usual videos have."""

MAX_INTERVAL_S = 60.0
"""The longest frame interval, in seconds; a window of 16 frames then spans 15 minutes."""

_USUAL_FRAME_S = 1 / 25
_MAX_FRAME_S = 3600.0
"""Limits the time for which one frame is shown, in seconds. A longer gap means damaged times, and would repeat a frame
many times."""


@dataclass(frozen=True)
class TimedFrame:
    """One frame of a video.

    Attributes:
        time_s: seconds since the video's first frame.
        picture: RGB, upright.
    """

    time_s: float
    picture: Image.Image

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """A new array of the picture, uint8 [H, W, 3], RGB in [0, 255]."""
        return np.asarray(self.picture)


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame and the time for which it is shown.

    Attributes:
        start_s: start in seconds since the video's first frame.
        end_s: end in seconds since the video's first frame.
        frame: decoded frame.
    """

    start_s: float
    end_s: float
    frame: DecodedFrame


def check_interval(interval_s: float) -> None:
    """Check that a frame interval is 0.01 to 60 seconds.

    Raises:
        DferDeployError: the interval is out of range.
    """
    require(
        MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S,
        f"the frame interval is {interval_s} s, expected {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g}",
    )


def timed_frames(video: Path, interval_s: float) -> Iterator[TimedFrame]:
    """Yield the frame that is shown at 0, ``interval_s``, 2 · ``interval_s``, … until the video's end.

    Times are presentation times, so a variable frame rate is respected. A frame that is shown for several steps is
    repeated, and one that is shown between two steps is skipped. One frame is held in memory.

    Args:
        video: a video file.
        interval_s: seconds from one frame to the next, 0.01 to 60.

    Raises:
        DferDeployError: the interval is out of range, the video cannot be read or is truncated (checked before the
            first frame), or its times have a gap of more than an hour.
    """
    check_interval(interval_s)
    packets_in_video(video)
    step = 0
    for shown in shown_frames(video):
        if shown.end_s - shown.start_s > _MAX_FRAME_S:
            raise ClipError(
                f"{video} has no frame between {shown.start_s:.1f} s and {shown.end_s:.1f} s, expected one at least "
                "every hour; its times are damaged, so write it anew"
            )
        picture = None
        while step * interval_s < shown.end_s - ROUNDING_S or step == 0:
            if picture is None:
                picture = shown.frame.upright()
            yield TimedFrame(step * interval_s, picture)
            step += 1


def shown_frames(video: Path) -> Iterator[ShownFrame]:
    """Yield all frames of a video that can be decoded, with their times; errors as in ``clips.reading.decoded_frames``.

    A frame without a time, or with a time before its predecessor's, is placed one usual frame duration after it.
    """
    usual_s = _usual_frame_s(video)
    start_s = first_s = 0.0
    held: DecodedFrame | None = None
    for frame in decoded_frames(video):
        stated_s = frame.frame.time
        if held is None:
            first_s = stated_s or 0.0
        else:
            end_s = start_s + usual_s if stated_s is None or stated_s - first_s < start_s else stated_s - first_s
            yield ShownFrame(start_s, end_s, held)
            start_s = end_s
        held = frame
    if held is not None:
        last = held.frame
        last_s = float(last.duration * last.time_base) if last.duration and last.time_base else usual_s
        yield ShownFrame(start_s, start_s + min(last_s, _MAX_FRAME_S), held)


def duration_s(video: Path) -> float | None:
    """Read the duration in a video's header, in seconds; None if the header does not state it."""
    with open_video(video) as (container, _):
        return container.duration / av.time_base if container.duration else None


def _usual_frame_s(video: Path) -> float:
    with open_video(video) as (_, stream):
        rate = stream.average_rate or stream.guessed_rate
        return float(1 / rate) if rate else _USUAL_FRAME_S
