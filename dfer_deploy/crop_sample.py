"""Some of the face crops of a video, spread over it, however long it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dfer_deploy.clips.contact_sheet import MAX_COLUMNS, MAX_ROWS
from dfer_deploy.clips.reading import Clip
from dfer_deploy.windows import Face, SeenFrame

_LARGEST_SIDE = 112
"""Pixels; the contact sheet shows no more."""


class CropSample:
    """Keeps, of every track, at most 24 crops at equal distances, and at most 32 tracks, those with the most crops."""

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}

    def add(self, frame: SeenFrame) -> None:
        """Takes the next frame."""
        for face in frame.faces:
            if face.track not in self._tracks:
                self._make_room()
                self._tracks[face.track] = _Track()
            self._tracks[face.track].add(frame.time_s, face)

    def rows(self) -> Mapping[int, Sequence[tuple[float, Clip]]]:
        """By track, times in seconds and crops uint8 [S, S, 3], in the order of time."""
        return {number: track.kept for number, track in self._tracks.items()}

    def _make_room(self) -> None:
        if len(self._tracks) >= 2 * MAX_ROWS:
            del self._tracks[min(self._tracks, key=lambda number: (self._tracks[number].count, -number))]


@dataclass
class _Track:
    kept: list[tuple[float, Clip]] = field(default_factory=list)
    count: int = 0
    every: int = 1

    def add(self, time_s: float, face: Face) -> None:
        if self.count % self.every == 0:
            self.kept.append((time_s, _small(face.crop)))
            if len(self.kept) > 2 * MAX_COLUMNS:
                self.kept = self.kept[::2]
                self.every *= 2
        self.count += 1


def _small(crop: Clip) -> Clip:
    if crop.shape[0] <= _LARGEST_SIDE:
        return crop
    return np.asarray(Image.fromarray(crop).resize((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BILINEAR))
