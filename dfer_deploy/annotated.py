"""A video with what was found in it drawn on every frame: boxes, track numbers, expressions, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

from dfer_deploy.clips.faces import Box
from dfer_deploy.clips.reading import upright
from dfer_deploy.clips.timed import ROUNDING_S, ShownFrame, shown_frames
from dfer_deploy.files import atomic_file
from dfer_deploy.recording import Recording
from dfer_deploy.windows import WHOLE, Window

LONGEST_SIDE = 1280
SHORTEST_SIDE = 480
"""Pixels of the written video's longer side: larger ones are made smaller, and smaller ones larger, so that the text
can be read."""

_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's; a track's number stands at its box, so that colour alone tells nothing."""

_TIME_BASE = Fraction(1, 60_000)
"""MPEG-4 part 2, where there is no x264, counts to 65535 at most."""

_OPTIONS = {"libx264": {"preset": "veryfast"}, "mpeg4": {"b": "4000000"}}
_BACK = (0, 0, 0, 165)

_Edges = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the written video."""


def write_annotated(
    path: Path,
    video: Path,
    recording: Recording,
    number: int,
    labels: Sequence[str],
    interval_s: float,
    position: Callable[[float], None],
) -> None:
    """Reads a video once more and writes it as MP4 with boxes and answers; the sound is left away.

    Between the times at which faces were looked for, boxes move in a straight line. The answer at a time is that of the
    first window that ends then or later.

    Args:
        path: the file; its folder exists. Written atomically.
        video: the input.
        recording: holds its windows and boxes.
        number: of the input in it.
        labels: C class names.
        interval_s: seconds between the times at which faces were looked for.
        position: is told the time in the video after every frame.

    Raises:
        DferDeployError: the video cannot be read or the file cannot be written.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    view = _View(recording, number, labels, interval_s)
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: av.VideoStream | None = None
        last = -1
        for shown in shown_frames(video):
            image = upright(shown.frame)
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
    """Knows the boxes around the present time, and draws."""

    def __init__(self, recording: Recording, number: int, labels: Sequence[str], interval_s: float) -> None:
        self._recording, self._number, self._labels, self._interval_s = recording, number, labels, interval_s
        self._whole = recording.window_around(number, WHOLE, 0.0) is not None
        self._panel: _Panel | None = None
        self._step = -1
        self._before: dict[int, Box] = {}
        self._after: dict[int, Box] = {}

    def drawn(self, image: Image.Image, size: tuple[int, int], shown: ShownFrame) -> Image.Image:
        """The frame at its final size with everything on it."""
        step = int((shown.start_s + ROUNDING_S) / self._interval_s)
        if step != self._step:
            self._step = step
            self._before, self._after = (
                self._recording.boxes(self._number, place * self._interval_s) for place in (step, step + 1)
            )
        share = min(1.0, max(0.0, shown.start_s / self._interval_s - step))
        scale_x, scale_y = size[0] / image.width, size[1] / image.height
        picture = image.resize(size, Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(picture, "RGBA")
        line = max(3, min(size) // 150)
        panel = self._panel = self._panel or _Panel(self._labels, max(11, min(size) // 32))
        boxes: dict[int, _Edges] = {WHOLE: (0, 0, 0, 0)} if self._whole else {}
        for track, box in sorted(self._before.items()):
            left, top, right, bottom = _between(box, self._after.get(track, box), share)
            boxes[track] = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
            pen.rectangle(boxes[track], outline=_COLOURS[track % len(_COLOURS)], width=line)
        for track, place in _places(boxes, panel.size, size).items():
            window = self._recording.window_around(self._number, track, shown.start_s)
            if window is not None:
                panel.draw(pen, place, window)
        return picture


class _Panel:
    """Track, expression, and a bar for every class."""

    def __init__(self, labels: Sequence[str], font_size: int) -> None:
        self._labels = labels
        self._font = ImageFont.load_default(font_size)
        self._line = int(self._font.getbbox("Ág")[3])
        self._names = max(self._font.getlength(label) for label in labels)
        self._bar = 4 * self._line
        title = max(self._font.getlength(f"00: {label} 0.00") for label in labels)
        self.size = (
            max(self._names + self._bar, title) + 3 * self._line // 2,
            (len(labels) + 1) * (self._line + 1) + self._line,
        )

    def draw(self, pen: ImageDraw.ImageDraw, place: tuple[float, float], window: Window) -> None:
        """Draws the answer; ``place`` is the panel's left and top."""
        (left, top), (width, height), line = place, self.size, self._line
        outline = _COLOURS[window.track % len(_COLOURS)]
        pen.rectangle((left, top, left + width, top + height), fill=_BACK, outline=outline)
        x, y = left + line // 2, top + line // 3
        pen.text((x, y), _title(window, self._labels), fill="white", font=self._font)
        best = int(window.logits.argmax())
        for index, (label, probability) in enumerate(zip(self._labels, window.probabilities.tolist(), strict=True)):
            y += line + 1
            colour = "white" if index == best else "#c8c8c8"
            pen.text((x, y), label, fill=colour, font=self._font)
            start = x + self._names + line // 2
            pen.rectangle((start, y + 2, start + self._bar, y + line - 1), outline="#808080")
            filled = self._bar * min(1.0, max(0.0, probability))
            pen.rectangle((start, y + 2, start + filled, y + line - 1), fill=colour)


def _title(window: Window, labels: Sequence[str]) -> str:
    best = int(window.logits.argmax())
    name = f"{window.track}: " if window.track != WHOLE else ""
    return f"{name}{labels[best]} {window.probabilities[best]:.2f}"


def _places(
    boxes: dict[int, _Edges], panel: tuple[float, float], size: tuple[int, int]
) -> dict[int, tuple[float, float]]:
    """Left and top of a panel beside every box, in the image, where it covers least of boxes and other panels.

    Boxes with the fewest free places come first.
    """
    width, height = panel
    gap = 4
    taken = list(boxes.values())
    choices = {}
    for track, (left, top, right, bottom) in boxes.items():
        beside = ((right + gap, top), (left - gap - width, top), (left, bottom + gap), (left, top - gap - height))
        choices[track] = [(max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))) for x, y in beside]

    def covered(place: tuple[float, float]) -> float:
        return sum(_shared(place, panel, other) for other in taken)

    places = {}
    for track in sorted(choices, key=lambda number: sum(covered(place) == 0 for place in choices[number])):
        left, top = places[track] = min(choices[track], key=covered)
        taken.append((left, top, left + width, top + height))
    return places


def _shared(place: tuple[float, float], panel: tuple[float, float], other: _Edges) -> float:
    """The area of a panel that something else covers."""
    width = min(place[0] + panel[0], other[2]) - max(place[0], other[0])
    height = min(place[1] + panel[1], other[3]) - max(place[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _between(first: Box, second: Box, share: float) -> _Edges:
    def mixed(a: float, b: float) -> float:
        return a + share * (b - a)

    return (
        mixed(first.left, second.left),
        mixed(first.top, second.top),
        mixed(first.right, second.right),
        mixed(first.bottom, second.bottom),
    )


def _size(image: Image.Image) -> tuple[int, int]:
    """Even width and height of the written video."""
    longer = max(image.size)
    scale = min(1.0, LONGEST_SIDE / longer) if longer >= SHORTEST_SIDE else SHORTEST_SIDE / longer
    width, height = (max(2, round(side * scale / 2) * 2) for side in image.size)
    return width, height
