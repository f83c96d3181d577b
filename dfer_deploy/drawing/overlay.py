"""The overlay of a picture: boxes, track numbers, expressions, and a bar for every class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from dfer_deploy.drawing.fonts import Letters
from dfer_deploy.inference.windows import WHOLE
from dfer_deploy.runtimes.predictor import Float32

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the picture."""

_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's colours. A track's number is shown at its box too, so colour is not needed to identify it."""

_BACK = (0, 0, 0, 165)
_GAP = 4

_ROOM_TO_GROW = 1.15
"""Panels return only when panels larger by this factor would fit, so that they do not flicker as faces move."""

_AROUND_NAMES = "0123456789.: "
"""Characters of the titles."""

_OWN_PICTURE = 640
"""The size in pixels of the picture whose text an answer's own picture has."""

_MIN_TEXT, _LINES_IN_A_PICTURE = 11, 32
"""The smallest text in pixels, and the number of text lines that fit on a picture's shorter side."""


class Overlay:
    """Draws on a sequence of pictures of one size.

    Attributes:
        labels: C class names.
        size: width and height of the pictures in pixels.
    """

    def __init__(self, labels: Sequence[str], size: tuple[int, int]) -> None:
        """
        Args:
            labels: C class names; empty if no answers are drawn.
            size: width and height of the pictures in pixels.
        """
        self.labels, self.size = tuple(labels), size
        self._letters = Letters("".join([*labels, _AROUND_NAMES]), max(_MIN_TEXT, min(size) // _LINES_IN_A_PICTURE))
        self._line = self._letters.line
        self._names = max((self._letters.length(label) for label in labels), default=0)
        self._bar = 4 * self._line
        title = max((self._letters.length(f"00: {label} 0.00") for label in labels), default=0)
        self._panel = (
            max(self._names + self._bar, title) + 3 * self._line // 2,
            (len(labels) + 1) * (self._line + 1) + self._line,
        )
        self._panels_fitted = True

    def draw(self, picture: Image.Image, boxes: Mapping[int, Edges], answers: Mapping[int, Float32]) -> None:
        """Draw the box of every track, and a panel with all classes beside every track with an answer.

        If a panel would cover a face or another panel, every answer is drawn as one line with the most probable class.

        Args:
            picture: RGB picture of the overlay's size, changed in place.
            boxes: boxes by track. That of ``WHOLE`` is not drawn.
            answers: probabilities [C] by track. Each of these tracks must have a box.
        """
        pen = ImageDraw.Draw(picture, "RGBA")
        for track, edges in boxes.items():
            if track != WHOLE:
                pen.rectangle(edges, outline=_colour(track), width=max(3, min(self.size) // 150))
        places = self._panel_places(boxes, answers)
        self._panels_fitted = places is not None
        if places is not None:
            for track, place in places.items():
                self._draw_panel(pen, place, track, answers[track])
        else:
            self._draw_titles(pen, boxes, answers)

    def _panel_places(
        self, boxes: Mapping[int, Edges], answers: Mapping[int, Float32]
    ) -> dict[int, tuple[float, float]] | None:
        """Left and top of every panel; None if they do not fit. The panel of the whole picture always fits."""
        if WHOLE in answers:
            return {WHOLE: (_GAP, 0.0)}
        width, height = self._panel
        if not self._panels_fitted:
            roomy = (_ROOM_TO_GROW * width, _ROOM_TO_GROW * height)
            if not _places(boxes, dict.fromkeys(answers, roomy), self.size)[1]:
                return None
        places, free = _places(boxes, dict.fromkeys(answers, self._panel), self.size)
        return places if free else None

    def _draw_panel(
        self, pen: ImageDraw.ImageDraw, place: tuple[float, float], track: int, probabilities: Float32
    ) -> None:
        (left, top), (width, height), line = place, self._panel, self._line
        pen.rectangle((left, top, left + width, top + height), fill=_BACK, outline=_colour(track))
        best = int(probabilities.argmax())
        x, y = left + line // 2, top + line // 3
        self._letters.draw(pen, (x, y), self._title(track, probabilities), "white")
        for index, (label, probability) in enumerate(zip(self.labels, probabilities.tolist(), strict=True)):
            y += line + 1
            colour = "white" if index == best else "#c8c8c8"
            self._letters.draw(pen, (x, y), label, colour)
            start = x + self._names + line // 2
            pen.rectangle((start, y + 2, start + self._bar, y + line - 1), outline="#808080")
            filled = self._bar * min(1.0, max(0.0, probability))
            pen.rectangle((start, y + 2, start + filled, y + line - 1), fill=colour)

    def _draw_titles(
        self, pen: ImageDraw.ImageDraw, boxes: Mapping[int, Edges], answers: Mapping[int, Float32]
    ) -> None:
        titles = {track: self._title(track, probabilities) for track, probabilities in answers.items()}
        sizes = {
            track: (self._letters.length(title) + self._line // 2, self._line + 4.0) for track, title in titles.items()
        }
        for track, (left, top) in _places(boxes, sizes, self.size)[0].items():
            width, height = sizes[track]
            pen.rectangle((left, top, left + width, top + height), fill=_BACK, outline=_colour(track))
            self._letters.draw(pen, (left + self._line // 4, top + 1), titles[track], "white")

    def _title(self, track: int, probabilities: Float32) -> str:
        best = int(probabilities.argmax())
        title = f"{self.labels[best]} {probabilities[best]:.2f}"
        return title if track == WHOLE else f"{track}: {title}"


def answer_picture(labels: Sequence[str], probabilities: Float32) -> Image.Image:
    """Draw the panel of one answer as an RGB picture of its own: the most probable class, and a bar for every class.

    Args:
        labels: C class names.
        probabilities: float32 [C].
    """
    overlay = Overlay(labels, (_OWN_PICTURE, _OWN_PICTURE))
    width, height = overlay._panel
    picture = Image.new("RGB", (math.ceil(width) + 2 * _GAP, math.ceil(height) + 1), "black")
    overlay.draw(picture, {}, {WHOLE: probabilities})
    return picture


def _colour(track: int) -> str:
    return _COLOURS[track % len(_COLOURS)]


def _places(
    boxes: Mapping[int, Edges], sizes: Mapping[int, tuple[float, float]], picture: tuple[int, int]
) -> tuple[dict[int, tuple[float, float]], bool]:
    """Choose places beside boxes, inside the picture, that cover the least of boxes and of each other.

    Boxes with the fewest free places come first.

    Args:
        boxes: all boxes, by track.
        sizes: width and height of the items to place, by track.
        picture: width and height of the picture.

    Returns:
        Left and top of the items by track, and whether all fit into the picture and cover nothing.
    """
    taken = list(boxes.values())
    choices = {}
    for track, (width, height) in sizes.items():
        left, top, right, bottom = boxes[track]
        beside = (
            (right + _GAP, top), (left - _GAP - width, top), (left, bottom + _GAP), (left, top - _GAP - height),
        )  # fmt: skip
        choices[track] = [
            (max(0.0, min(x, picture[0] - width)), max(0.0, min(y, picture[1] - height))) for x, y in beside
        ]

    def covered(track: int, place: tuple[float, float]) -> float:
        return sum(_shared(place, sizes[track], other) for other in taken)

    places, free = {}, True
    for track in sorted(choices, key=lambda number: sum(covered(number, place) == 0 for place in choices[number])):
        width, height = sizes[track]
        left, top = places[track] = min(choices[track], key=lambda place: covered(track, place))
        free = free and covered(track, places[track]) == 0 and width <= picture[0] and height <= picture[1]
        taken.append((left, top, left + width, top + height))
    return places, free


def _shared(place: tuple[float, float], size: tuple[float, float], other: Edges) -> float:
    """The area that an item at a place shares with a box."""
    width = min(place[0] + size[0], other[2]) - max(place[0], other[0])
    height = min(place[1] + size[1], other[3]) - max(place[1], other[1])
    return max(0.0, width) * max(0.0, height)
