"""Some of the face crops of a video, spread over it, however long it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dfer_deploy.clips.reading import Clip
from dfer_deploy.clips.tracks import MAX_TRACKS
from dfer_deploy.drawing.contact_sheet import MAX_ROWS, CropRow
from dfer_deploy.inference.windows import Face

_MAX_SIDE = 112
"""Pixels. The contact sheet shows crops of this size, so larger ones would only take memory."""

_MAX_CROPS = 48
"""Limits the crops kept of a track to four times what the contact sheet shows. So it finds crops at equal distances."""


class CropSample:
    """Keeps, of every track, at most 48 crops at equal distances; of the tracks that are over, the 16 longest ones."""

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}
        self._newest = 0

    def add(self, time_s: float, face: Face) -> None:
        """Take the next crop of a track."""
        self._newest = max(self._newest, face.track)
        # Those that were seen last stand at the end.
        track = self._tracks[face.track] = self._tracks.pop(face.track, _Track())
        track.add(time_s, face)
        self._make_room()

    @property
    def tracks(self) -> int:
        """How many tracks there were; they are numbered in the order of appearance."""
        return max(self._newest, len(self._tracks))

    def rows(self) -> dict[int, CropRow]:
        """Return what is kept, by track."""
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
