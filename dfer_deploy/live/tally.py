"""The tally of a live session: counts, speed, latency, and each face's expressions. Its memory is bounded."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dfer_deploy.live.session import FaceAnswer

_RECENT_S = 3.0
_LATENCIES = 1000
MAX_TRACKS = 200
"""Limits the faces in the summary to the last ones."""


@dataclass
class TrackTally:
    """The tally of one face: the times of its first and last answer in seconds, and the answers by expression."""

    start_s: float
    end_s: float
    expressions: Counter[str] = field(default_factory=Counter)

    def shares(self, count: int) -> str:
        """Format the ``count`` most frequent expressions with their shares of the answers in percent."""
        total = self.expressions.total()
        return ", ".join(f"{name} {100 * n / total:.0f} %" for name, n in self.expressions.most_common(count))


class Tally:
    """Counts of the frames and answers of a running session."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start_s = clock()
        self._recent: deque[float] = deque(maxlen=_LATENCIES)
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self.frames = self.answers = self.resumed = 0
        self.tracks: OrderedDict[int, TrackTally] = OrderedDict()

    def add(self, answers: Sequence[FaceAnswer]) -> None:
        """Count one frame with its answers."""
        self.frames += 1
        self._recent.append(self._clock())
        for face in answers:
            if face.answer is None:
                continue
            self.answers += 1
            self.resumed += face.answer.resumed
            self._latencies.append(face.latency_s)
            track = self.tracks.setdefault(face.track, TrackTally(face.time_s, face.time_s))
            track.end_s = face.time_s
            track.expressions[face.answer.expression] += 1
        while len(self.tracks) > MAX_TRACKS:
            self.tracks.popitem(last=False)

    @property
    def seconds(self) -> float:
        """Seconds since the session began."""
        return self._clock() - self._start_s

    @property
    def frames_per_s(self) -> float:
        """Frames per second over the last three seconds."""
        now = self._clock()
        recent = sum(now - moment <= _RECENT_S for moment in self._recent)
        return recent / max(1e-3, min(_RECENT_S, self.seconds))

    def latency_ms(self, percentile: float) -> float:
        """Compute a percentile, 0 to 100, of the last thousand latencies in milliseconds; NaN without answers."""
        return 1000 * float(np.percentile(self._latencies, percentile)) if self._latencies else float("nan")

    def to_dict(self, dropped: int) -> dict[str, Any]:
        """Convert to plain data for JSON, with the number of ``dropped`` frames."""
        return {
            "seconds": self.seconds,
            "frames": self.frames,
            "answers": self.answers,
            "dropped": dropped,
            "resumed": self.resumed,
            "latency_ms": {str(p): self.latency_ms(p) for p in (50, 95)} if self._latencies else None,
            "tracks": {
                str(number): {
                    "start_s": track.start_s,
                    "end_s": track.end_s,
                    "expressions": dict(track.expressions.most_common()),
                }
                for number, track in self.tracks.items()
            },
        }
