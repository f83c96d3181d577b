"""A copy of a video with the results drawn on every frame: boxes, track numbers, expressions, probabilities."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from dfer_deploy.clips.faces import Box
from dfer_deploy.clips.timed import ROUNDING_S, ShownFrame, shown_frames
from dfer_deploy.drawing.overlay import Edges, Overlay
from dfer_deploy.files import atomic_file
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.windows import WHOLE

MAX_SIDE = 1280
"""Limits the longer side of the written video, in pixels. Larger videos are scaled down."""

MIN_SIDE = 480
"""The shortest longer side of the written video, in pixels. Smaller videos are scaled up, so that text is readable."""

_TIME_BASE = Fraction(1, 60_000)
"""Time base of the written video. MPEG-4 part 2, which is used without x264, allows at most 65535 units a second."""

_OPTIONS = {"libx264": {"preset": "veryfast"}, "mpeg4": {"b": "4000000"}}


def write_annotated(
    path: Path,
    video: Path,
    recording: Recording,
    number: int,
    interval_s: float,
    position: Callable[[float], None],
) -> None:
    """Read a video again and write it as MP4 with boxes and answers, without its sound.

    Boxes are interpolated linearly between the times of face detection. The answer shown at a time is that of the
    window whose middle is nearest, as in the timeline.

    Args:
        path: file to write, atomically; its folder must exist.
        video: the input.
        recording: recording of the input's windows and boxes.
        number: number of the input in the recording.
        interval_s: seconds between the times of face detection.
        position: called with the time in the video, in seconds, after every frame.

    Raises:
        DferDeployError: the video cannot be read or the file cannot be written.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    view = _View(recording, number, interval_s)
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: av.VideoStream | None = None
        last = -1
        for shown in shown_frames(video):
            image = shown.frame.upright()
            if stream is None:
                stream = container.add_stream(codec, rate=25, options=_OPTIONS[codec])
                stream.width, stream.height = _size(image)
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = _TIME_BASE
            frame = av.VideoFrame.from_image(view.drawn(image, (stream.width, stream.height), shown))  # type: ignore[no-untyped-call]
            last = max(last + 1, round(shown.start_s / _TIME_BASE))
            frame.pts, frame.time_base = last, _TIME_BASE
            container.mux(stream.encode(frame))
            position(shown.start_s)
        if stream is not None:
            container.mux(stream.encode(None))


class _View:
    """Draws the boxes and answers of a recording on the frames of a video."""

    def __init__(self, recording: Recording, number: int, interval_s: float) -> None:
        self._recording, self._number, self._interval_s = recording, number, interval_s
        self._whole = recording.window_around(number, WHOLE, 0.0) is not None
        self._overlay: Overlay | None = None
        self._step = -1
        self._before: dict[int, Box] = {}
        self._after: dict[int, Box] = {}

    def drawn(self, image: Image.Image, size: tuple[int, int], shown: ShownFrame) -> Image.Image:
        """Draw the boxes and answers on a frame, resized to ``size``."""
        step = int((shown.start_s + ROUNDING_S) / self._interval_s)
        if step != self._step:
            self._step = step
            self._before, self._after = (
                self._recording.boxes(self._number, place * self._interval_s) for place in (step, step + 1)
            )
        share = min(1.0, max(0.0, shown.start_s / self._interval_s - step))
        scale_x, scale_y = size[0] / image.width, size[1] / image.height
        picture = image.resize(size, Image.Resampling.BILINEAR)
        overlay = self._overlay = self._overlay or Overlay(self._recording.labels, size)
        boxes: dict[int, Edges] = {WHOLE: (0, 0, 0, 0)} if self._whole else {}
        for track, box in sorted(self._before.items()):
            left, top, right, bottom = _between(box, self._after.get(track, box), share)
            boxes[track] = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        windows = {track: self._recording.window_around(self._number, track, shown.start_s) for track in boxes}
        answers = {track: window.probabilities for track, window in windows.items() if window is not None}
        overlay.draw(picture, boxes, answers)
        return picture


def _between(first: Box, second: Box, share: float) -> Edges:
    def mixed(a: float, b: float) -> float:
        return a + share * (b - a)

    return (
        mixed(first.left, second.left),
        mixed(first.top, second.top),
        mixed(first.right, second.right),
        mixed(first.bottom, second.bottom),
    )


def _size(image: Image.Image) -> tuple[int, int]:
    """The width and height of the written video, which are even."""
    longer = max(image.size)
    scale = min(1.0, MAX_SIDE / longer) if longer >= MIN_SIDE else MIN_SIDE / longer
    width, height = (max(2, round(side * scale / 2) * 2) for side in image.size)
    return width, height
