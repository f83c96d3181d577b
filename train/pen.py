"""Draw on a picture in the coordinates of a face that is turned, moved and scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

CIRCLE = np.linspace(0.0, 2 * np.pi, 36, endpoint=False)
"""Angles of the corners of the polygons with which ellipses are drawn."""


@dataclass(frozen=True)
class Pose:
    """The pose of the head in the picture: angles in radians, the rest in shares of the picture's size."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    half_width: float = 0.41
    x: float = 0.5
    y: float = 0.5


class Pen:
    """A pen in face coordinates: x to the right and y down, in half face widths from the middle of the head."""

    def __init__(self, picture: Image.Image, pose: Pose) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._side = picture.width
        self._pose = pose
        self._unit = pose.half_width * picture.width

    def _pixels(self, points: Array, bulge: float) -> list[tuple[float, float]]:
        # The face is the front of an ellipsoid: a turn of the head moves its front more than its outline.
        pose = self._pose
        x, y = points[:, 0], points[:, 1]
        depth = bulge * np.sqrt(np.maximum(0.0, 1.0 - (x / 1.1) ** 2 - (y / 1.5) ** 2))
        x = x * np.cos(pose.yaw) + depth * np.sin(pose.yaw)
        y = y * np.cos(pose.pitch) + depth * np.sin(pose.pitch)
        cosine, sine = np.cos(pose.roll) * self._unit, np.sin(pose.roll) * self._unit
        across = pose.x * self._side + cosine * x - sine * y
        down = pose.y * self._side + sine * x + cosine * y
        return list(zip(across.tolist(), down.tolist(), strict=True))

    def fill(self, points: Array, colour: Colour, bulge: float = 0.9) -> None:
        """Fill the polygon [N, 2]; ``bulge`` is how far its middle stands out of the picture: 0 on the outline."""
        self._draw.polygon(self._pixels(points, bulge), fill=colour)

    def line(self, points: Array, colour: Colour, width: float, bulge: float = 0.9) -> None:
        """Draw a line through the points [N, 2]."""
        pixels = self._pixels(points, bulge)
        self._draw.line(pixels, fill=colour, width=max(1, round(width * self._unit)), joint="curve")


def ellipse(x: float, y: float, half_width: float, half_height: float) -> Array:
    """Return the corners of an ellipse, [36, 2]."""
    return np.stack([x + half_width * np.cos(CIRCLE), y + half_height * np.sin(CIRCLE)], axis=1)


def arc(x: float, y: float, half_width: float, half_height: float, start: float, sweep: float) -> Array:
    """Return points on a part of an ellipse, [8, 2]; angles in radians, clockwise in the picture."""
    angles = start + np.linspace(0.0, sweep, 8)
    return np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], axis=1)


def closed(x_there: Array, y_there: Array, x_back: Array, y_back: Array) -> Array:
    """Return the polygon between two lines that run in the same direction."""
    return np.concatenate([np.stack([x_there, y_there], axis=1), np.stack([x_back, y_back], axis=1)[::-1]])


def colour_from(values: Array) -> Colour:
    """Return the nearest colour, 0–255 for each of red, green and blue."""
    red, green, blue = (round(float(value)) for value in np.clip(values, 0, 255))
    return red, green, blue


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours: ``first`` with a ``share`` of ``second``, in [0, 1]."""
    return colour_from(np.array(first) * (1 - share) + np.array(second) * share)


def shaded(colour: Colour, factor: float) -> Colour:
    """Return the colour in more (factor above 1) or less light."""
    return colour_from(np.array(colour) * factor)
