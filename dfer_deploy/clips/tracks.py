"""Tracking of faces over time: each face is one track with a smoothed box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.faces import Box, Detection, overlaps
from dfer_deploy.console import warn

START_SCORE = 0.5
"""The lowest score that starts a track, in [0, 1]. Faces with lower scores only continue tracks, as in ByteTrack (Zhang
et al., 2022)."""

HOLD_S = 0.75
"""Seconds for which a track continues while its face is not found. A face that reappears later gets a new track."""

SMOOTHING_S = 0.2
"""Time constant of the smoothing, in seconds. The smoothing per second does not depend on the frame rate."""

MAX_TRACKS = 32
"""Limits the faces that are followed at once. Those with higher scores start first."""

MIN_OVERLAP = 0.1
"""The lowest intersection over union at which a face can continue a track."""

_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sighting:
    """One face at one time.

    Attributes:
        track: number of the track, 1, 2, … in the order of appearance; never reused.
        box: smoothed box.
        score: detection score, in [0, 1]; that of the last detection if the face was not found.
        detected: False if the face was not found. Its box then moves on with its last velocity.
    """

    track: int
    box: Box
    score: float
    detected: bool


class FaceTracker:
    """Joins the faces of frames to tracks by the overlap of their boxes.

    The tracker works online: a sighting depends on earlier frames only. Pairs of a track and a face are matched in the
    order of falling overlap. A track's box is first moved with its velocity; otherwise people who cross would swap
    tracks.

    The centre follows a critically damped g-h filter (Brookner, 1998, "Tracking and Kalman Filtering Made Easy",
    section 1.2), which does not lag behind a steady movement. Width and height are smoothed exponentially.
    """

    def __init__(self, smoothing_s: float = SMOOTHING_S) -> None:
        """Begin without tracks.

        Args:
            smoothing_s: time constant in seconds; 0 keeps the detected boxes.
        """
        self._smoothing_s = smoothing_s
        self._tracks: list[_Track] = []
        self._count = 0
        self._was_full = False
        self._time_s = -math.inf

    def update(self, time_s: float, detections: Sequence[Detection]) -> list[Sighting]:
        """Update the tracks with the detections of the next frame.

        Args:
            time_s: time of the frame in seconds, later than in the previous call.
            detections: detections in the frame; empty if no face was found.

        Returns:
            One sighting for each current track, in the order of appearance.

        Raises:
            ValueError: the time is not later than in the previous call.
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
        """The track that each detection continues, by the detection's index."""
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
    """A face when it was last found: centre in pixels, velocity in pixels a second, logarithms of its two sides."""

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
