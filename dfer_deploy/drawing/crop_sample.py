"""A bounded sample of a video's face crops, spread evenly over its length."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dfer_deploy.clips.reading import Clip
from dfer_deploy.clips.tracks import MAX_TRACKS
from dfer_deploy.drawing.contact_sheet import MAX_ROWS, CropRow
from dfer_deploy.inference.windows import Face

_MAX_SIDE = 112
"""Limits the side of a kept crop, in pixels, to the size in which the contact sheet shows it, to save memory."""

_MAX_CROPS = 48
"""Limits the crops kept of a track to four times the number in a contact sheet, which chooses equally spaced ones."""


class CropSample:
    """Keeps at most 48 equally spaced crops of every track. Of the tracks that have ended, it keeps the longest 16."""

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}
        self._newest = 0

    def add(self, time_s: float, face: Face) -> None:
        """Add the next crop of a track."""
        self._newest = max(self._newest, face.track)
        # The tracks seen last are at the end of the dictionary.
        track = self._tracks[face.track] = self._tracks.pop(face.track, _Track())
        track.add(time_s, face)
        self._make_room()

    @property
    def tracks(self) -> int:
        """The number of tracks so far, which are numbered in the order of appearance."""
        return max(self._newest, len(self._tracks))

    def rows(self) -> dict[int, CropRow]:
        """Collect the kept crops by track."""
        return {number: CropRow(track.kept, track.count) for number, track in self._tracks.items()}

    def _make_room(self) -> None:
        if len(self._tracks) > MAX_TRACKS + MAX_ROWS:
            over = list(self._tracks)[:-MAX_TRACKS]
            del self._tracks[min(over, key=lambda number: (self._tracks[number].count, -number))]


@dataclass
class _Track:
    kept: list[tuple[float, Clip]] = field(default_factory=list)
    count: int = 0
    every: int = 1

    def add(self, time_s: float, face: Face) -> None:
        if self.count % self.every == 0:
            self.kept.append((time_s, _small(face.crop)))
            if len(self.kept) > _MAX_CROPS:
                self.kept = self.kept[::2]
                self.every *= 2
        self.count += 1


def _small(crop: Clip) -> Clip:
    if crop.shape[0] <= _MAX_SIDE:
        return crop
    return np.asarray(Image.fromarray(crop).resize((_MAX_SIDE, _MAX_SIDE), Image.Resampling.BILINEAR))
