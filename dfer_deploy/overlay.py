"""What is drawn over a picture: boxes, track numbers, expressions, and a bar for every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.windows import WHOLE

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the picture."""

_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's; a track's number stands at its box, so that colour alone tells nothing."""

_BACK = (0, 0, 0, 165)


class Overlay:
    """Draws on pictures of one size."""

    def __init__(self, labels: Sequence[str], size: tuple[int, int]) -> None:
        """
        Args:
            labels: C class names; none where no answer is drawn.
            size: width and height of the pictures in pixels.
        """
        self._labels, self._size = labels, size
        self._font = ImageFont.load_default(max(11, min(size) // 32))
        self._line = int(self._font.getbbox("Ág")[3])
        self._names = max((self._font.getlength(label) for label in labels), default=0)
        self._bar = 4 * self._line
        title = max((self._font.getlength(f"00: {label} 0.00") for label in labels), default=0)
        self._panel = (
            max(self._names + self._bar, title) + 3 * self._line // 2,
            (len(labels) + 1) * (self._line + 1) + self._line,
        )

    def draw(self, picture: Image.Image, boxes: Mapping[int, Edges], answers: Mapping[int, Float32]) -> None:
        """Draws the box of every track, and a panel beside those that have an answer.

        Args:
            picture: RGB, of the overlay's size; changed in place.
            boxes: by track; that of ``WHOLE`` is not drawn and says only where its panel stands.
            answers: probabilities [C] by track; each of these tracks has a box.
        """
        pen = ImageDraw.Draw(picture, "RGBA")
        for track, edges in boxes.items():
            if track != WHOLE:
                pen.rectangle(edges, outline=_colour(track), width=max(3, min(self._size) // 150))
        for track, place in _places(boxes, self._panel, self._size).items():
            if track in answers:
                self._draw_panel(pen, place, track, answers[track])

    def _draw_panel(
        self, pen: ImageDraw.ImageDraw, place: tuple[float, float], track: int, probabilities: Float32
    ) -> None:
        (left, top), (width, height), line = place, self._panel, self._line
        pen.rectangle((left, top, left + width, top + height), fill=_BACK, outline=_colour(track))
        best = int(probabilities.argmax())
        title = f"{self._labels[best]} {probabilities[best]:.2f}"
        x, y = left + line // 2, top + line // 3
        pen.text((x, y), title if track == WHOLE else f"{track}: {title}", fill="white", font=self._font)
        for index, (label, probability) in enumerate(zip(self._labels, probabilities.tolist(), strict=True)):
            y += line + 1
            colour = "white" if index == best else "#c8c8c8"
            pen.text((x, y), label, fill=colour, font=self._font)
            start = x + self._names + line // 2
            pen.rectangle((start, y + 2, start + self._bar, y + line - 1), outline="#808080")
            filled = self._bar * min(1.0, max(0.0, probability))
            pen.rectangle((start, y + 2, start + filled, y + line - 1), fill=colour)


def _colour(track: int) -> str:
    return _COLOURS[track % len(_COLOURS)]


def _places(
    boxes: Mapping[int, Edges], panel: tuple[float, float], size: tuple[int, int]
) -> dict[int, tuple[float, float]]:
    """Left and top of a panel beside every box, in the picture, where it covers least of boxes and other panels.

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


def _shared(place: tuple[float, float], panel: tuple[float, float], other: Edges) -> float:
    """The area of a panel that something else covers."""
    width = min(place[0] + panel[0], other[2]) - max(place[0], other[0])
    height = min(place[1] + panel[1], other[3]) - max(place[1], other[1])
    return max(0.0, width) * max(0.0, height)
