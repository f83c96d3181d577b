"""A recording of the windows and boxes of videos, to be shown, written and drawn.

Two hours of one face are about 10,000 windows and 45,000 boxes, or about 20 MB.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from dfer_deploy.clips.faces import Box
from dfer_deploy.inference.windows import Face, Window

_SAME_TIME_S = 0.0005
_MIDDLE = attrgetter("middle_s")


@dataclass(frozen=True)
class TrackSummary:
    """One person in one video.

    Attributes:
        track: number of the track.
        start_s: start of the first window in seconds; NaN if the input has no times.
        end_s: end of the last window in seconds; NaN if the input has no times.
        windows: number of windows.
        shares: share of the windows that are answered with a class, by class index, the largest first.
    """

    track: int
    start_s: float
    end_s: float
    windows: int
    shares: dict[int, float]


class Recording:
    """The windows and boxes of several inputs, each identified by its number."""

    def __init__(self, labels: Sequence[str]) -> None:
        """
        Args:
            labels: C class names, in the order of the logits.
        """
        self.labels = tuple(labels)
        self._windows: dict[int, dict[int, list[Window]]] = {}
        self._boxes: dict[int, list[tuple[float, int, Box]]] = {}

    def add_window(self, number: int, window: Window) -> None:
        """Add a window of the input ``number``."""
        insort(self._windows.setdefault(number, {}).setdefault(window.track, []), window, key=_MIDDLE)

    def add_box(self, number: int, time_s: float, face: Face) -> None:
        """Add the box of a face of the input ``number`` at a time. A face without a box is ignored."""
        if face.box is not None:
            insort(self._boxes.setdefault(number, []), (time_s, face.track, face.box), key=lambda seen: seen[:2])

    def forget(self, number: int) -> None:
        """Drop the windows and boxes of the input ``number``."""
        self._windows.pop(number, None)
        self._boxes.pop(number, None)

    def count(self, number: int | None = None) -> int:
        """Count the windows of the input ``number``, or of all inputs."""
        inputs = self._windows.values() if number is None else [self._windows.get(number, {})]
        return sum(len(windows) for tracks in inputs for windows in tracks.values())

    def windows(self, number: int, track: int | None = None) -> Iterator[Window]:
        """Yield the windows of an input, or of one of its tracks, ordered by track and time."""
        tracks = self._windows.get(number, {})
        for of_track in sorted(tracks) if track is None else [track]:
            yield from tracks.get(of_track, ())

    def window_around(self, number: int, track: int, time_s: float) -> Window | None:
        """Find the window of a track whose middle is nearest to ``time_s``; of two, the earlier one.

        Returns:
            The window, or None if the track has none.
        """
        windows = self._windows.get(number, {}).get(track, [])
        place = bisect_left(windows, time_s, key=_MIDDLE)
        near = windows[max(place - 1, 0) : place + 1]
        return min(near, key=lambda window: abs(window.middle_s - time_s), default=None)

    def boxes(self, number: int, time_s: float) -> dict[int, Box]:
        """Find the boxes of the frame at ``time_s``, within half a millisecond, by track."""
        seen = self._boxes.get(number, [])
        found = {}
        for place in range(bisect_left(seen, time_s - _SAME_TIME_S, key=lambda entry: entry[0]), len(seen)):
            at_s, track, box = seen[place]
            if at_s > time_s + _SAME_TIME_S:
                break
            found[track] = box
        return found

    def tracks(self, number: int) -> Iterator[TrackSummary]:
        """Yield a summary of each track of an input, in the order of appearance."""
        tracks = self._windows.get(number, {})
        for track in sorted(tracks):
            windows = tracks[track]
            answers = Counter(sorted(int(window.logits.argmax()) for window in windows))
            yield TrackSummary(
                track=track,
                start_s=min(window.start_s for window in windows),
                end_s=max(window.end_s for window in windows),
                windows=len(windows),
                shares={index: count / len(windows) for index, count in answers.most_common()},
            )
