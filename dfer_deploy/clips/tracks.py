"""Faces over time: each person is one track, with a steady box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.faces import Box, Detection, overlaps
from dfer_deploy.console import warn

START_SCORE = 0.5
"""A face with a lower score goes on with a track and begins none, as in ByteTrack (Zhang et al., 2022)."""

HOLD_S = 0.75
"""Seconds for which the track of a face that is not found goes on. A face that reappears later gets a new track."""

SMOOTHING_S = 0.2
"""Time constant of the smoothing, in seconds; what it does in a second does not depend on the frame rate."""

MAX_TRACKS = 32
"""Faces that are followed at once; those with higher scores begin first."""

MIN_OVERLAP = 0.1
"""Intersection over union from which on a face can be that of a track."""

_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sighting:
    """One face at one time.

    Attributes:
        track: the person's number, 1, 2, … in the order of appearance; never used again.
        box: smoothed.
        score: the detection's, or the last one's.
        detected: False where the face was not found and its box is held, moving on as it did.
    """

    track: int
    box: Box
    score: float
    detected: bool


class FaceTracker:
    """Joins the faces of frames to tracks by the overlap of their boxes.

    Online: a sighting depends only on what came before. Pairs of a track and a face are taken from the largest overlap
    down, where the track's box is moved on with its velocity: without that, people who cross swap their tracks.

    The centre follows a critically damped g-h filter (Brookner, 1998, "Tracking and Kalman Filtering Made Easy",
    section 1.2), which does not lag behind a steady movement; width and height are smoothed exponentially.
    """

    def __init__(self, smoothing_s: float = SMOOTHING_S) -> None:
        """Begin without tracks.

        Args:
            smoothing_s: time constant in seconds; 0 for boxes as they are detected.
        """
        self._smoothing_s = smoothing_s
        self._tracks: list[_Track] = []
        self._count = 0
        self._was_full = False
        self._time_s = -math.inf

    def update(self, time_s: float, detections: Sequence[Detection]) -> list[Sighting]:
        """Return the faces at a time.

        Args:
            time_s: seconds, later than in the call before.
            detections: of the frame at this time; empty where no face was found.

        Returns:
            One sighting for each track that goes on, in the order of appearance.

        Raises:
            ValueError: the time is not later.
        """
        if not time_s > self._time_s:
            raise ValueError(f"time {time_s} does not come after {self._time_s}")
        self._time_s = time_s
        self._tracks = [track for track in self._tracks if time_s - track.seen_s <= HOLD_S]
        matched = self._matched(detections)
        for place, track in matched.items():
            track.follow(time_s, detections[place], self._smoothing_s)
        strangers = (detection for place, detection in enumerate(detections) if place not in matched)
        for detection in sorted(strangers, key=lambda detection: -detection.score):
            if detection.score < START_SCORE:
                break
            if len(self._tracks) == MAX_TRACKS:
                if not self._was_full:
                    warn(f"there are more than {MAX_TRACKS} faces at once; so many are followed, the others are not")
                self._was_full = True
                break
            self._count += 1
            self._tracks.append(_Track(self._count, time_s, detection.score, *_measured(detection.box)))
        return [
            Sighting(track.number, Box(*track.edges_at(time_s).tolist()), track.score, track.seen_s == time_s)
            for track in self._tracks
        ]

    def _matched(self, detections: Sequence[Detection]) -> dict[int, _Track]:
        """The track that each detection goes on with, by the detection's place."""
        matched: dict[int, _Track] = {}
        if not self._tracks or not detections:
            return matched
        boxes = [detection.box for detection in detections]
        overlap = overlaps(
            np.stack([track.edges_at(self._time_s) for track in self._tracks]),
            np.array([(box.left, box.top, box.right, box.bottom) for box in boxes]),
        )
        while overlap.max() >= MIN_OVERLAP:
            row, place = np.unravel_index(overlap.argmax(), overlap.shape)
            matched[int(place)] = self._tracks[row]
            overlap[row], overlap[:, place] = -1.0, -1.0
        return matched


@dataclass
class _Track:
    """A face when it was last found: centre and velocity in pixels and pixels a second, logarithms of its two sides."""

    number: int
    seen_s: float
    score: float
    centre: _Vector
    log_sides: _Vector
    velocity: _Vector = field(default_factory=lambda: np.zeros(2))

    def centre_at(self, time_s: float) -> _Vector:
        return self.centre + self.velocity * (time_s - self.seen_s)

    def edges_at(self, time_s: float) -> _Vector:
        """Left, top, right and bottom."""
        centre, half = self.centre_at(time_s), np.exp(self.log_sides) / 2
        return np.concatenate([centre - half, centre + half])

    def follow(self, time_s: float, detection: Detection, smoothing_s: float) -> None:
        passed = time_s - self.seen_s
        memory = math.exp(-passed / smoothing_s) if smoothing_s else 0.0
        expected = self.centre_at(time_s)
        centre, log_sides = _measured(detection.box)
        self.velocity = self.velocity + (1 - memory) ** 2 / passed * (centre - expected)
        self.centre = expected + (1 - memory**2) * (centre - expected)
        self.log_sides = self.log_sides + (1 - memory**2) * (log_sides - self.log_sides)
        self.seen_s, self.score = time_s, detection.score


def _measured(box: Box) -> tuple[_Vector, _Vector]:
    """A box's centre, and the logarithms of its width and height."""
    return np.array(box.centre), np.log([box.width, box.height])
