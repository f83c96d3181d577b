"""A picture of the class probabilities over time, one panel for each person.

Classes differ in colour, line and marker, and the most probable one is written above the curves; the colours are Okabe
and Ito's ("Color Universal Design", 2008), which colour-blind people tell apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dfer_deploy.files import atomic_file
from dfer_deploy.recording import Recording, TrackSummary
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.windows import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 12
"""The tracks with the most windows are drawn."""

MAX_POINTS = 400
"""Of a curve; where there are more windows, neighbours are averaged."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
_MARKERS_ON_A_CURVE = 14
_NARROWEST_LABEL = 0.06
"""Share of the panel's width from which on a span of one expression is named above the curves."""


@dataclass(frozen=True)
class Curves:
    """Probabilities over time: ``times`` [N] in seconds, the middles of windows, and ``probabilities`` [N, C]."""

    times: npt.NDArray[np.float64]
    probabilities: Float32


def write_timeline(path: Path, recording: Recording, number: int, labels: Sequence[str], title: str) -> bool:
    """Draws one input as a PNG; the longest twelve tracks, each with at most 400 points.

    Args:
        path: the file; its folder exists. Written atomically.
        recording: holds the windows.
        number: of the input in it.
        labels: C class names.
        title: stands above.

    Returns:
        False where the input has no window with a time; then nothing is written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tracks, count = _longest(recording.tracks(number))
    if not tracks:
        return False
    figure = Figure(figsize=(11, 1.5 + 2.1 * len(tracks)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    span_s = max(track.end_s for track in tracks) - min(track.start_s for track in tracks)
    panels = figure.subplots(len(tracks), 1, sharex=True, squeeze=False)[:, 0]
    for axes, track in zip(panels, tracks, strict=True):
        curves = averaged(recording.windows(number, track.track), track.windows, MAX_POINTS)
        _draw(axes, curves, labels, span_s)
        name = f"track {track.track}" if track.track else "whole picture"
        axes.set_ylabel(f"{name}\nprobability", parse_math=False)
    panels[-1].set_xlabel("time in the video, s (middle of each window)")
    more = f" ({len(tracks)} of {count} tracks, the longest)" if count > len(tracks) else ""
    figure.suptitle(f"{title}{more}", parse_math=False)
    handles, names = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=min(7, len(labels)), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return True


def averaged(windows: Iterable[Window], count: int, points: int) -> Curves:
    """The curves of ``count`` windows in the order of time, averaged over neighbours to at most ``points`` points."""
    together = -(-count // points)
    times: list[float] = []
    probabilities: list[Float32] = []
    for place, window in enumerate(windows):
        if place % together == 0:
            times.append(0.0)
            probabilities.append(np.zeros_like(window.probabilities))
        share = 1 / min(together, count - place // together * together)
        times[-1] += share * (window.start_s + window.end_s) / 2
        probabilities[-1] = probabilities[-1] + np.float32(share) * window.probabilities
    return Curves(np.array(times), np.stack(probabilities))


def _longest(tracks: Iterable[TrackSummary]) -> tuple[list[TrackSummary], int]:
    """The tracks to draw, in the order of appearance, and how many there are."""
    longest: list[TrackSummary] = []
    count = 0
    for track in tracks:
        if np.isnan(track.end_s):
            continue
        count += 1
        longest = sorted([*longest, track], key=lambda found: (-found.windows, found.track))[:MAX_PANELS]
    return sorted(longest, key=lambda found: found.track), count


def _draw(axes: Axes, curves: Curves, labels: Sequence[str], span_s: float) -> None:
    times = curves.times
    every = max(1, len(times) // _MARKERS_ON_A_CURVE)
    for index, name in enumerate(labels):
        axes.plot(
            times, curves.probabilities[:, index], label=name,
            color=_COLOURS[index % len(_COLOURS)], linestyle=_LINES[index % len(_LINES)], linewidth=1.5,
            marker=_MARKERS[index % len(_MARKERS)], markersize=4.5,
            # Curves that lie on each other have their markers at different places.
            markevery=(index * every // len(labels), every),
        )  # fmt: skip
    axes.set_ylim(-0.03, 1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    _name_the_spans(axes, curves, labels, _NARROWEST_LABEL * span_s)


def _name_the_spans(axes: Axes, curves: Curves, labels: Sequence[str], shortest_s: float) -> None:
    """Writes the most probable expression above the times at which it is, where there is room."""
    times, best = curves.times, curves.probabilities.argmax(axis=1)
    starts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
    for start, end in itertools.pairwise(starts):
        left = float(times[start] if start == 0 else (times[start - 1] + times[start]) / 2)
        right = float(times[-1] if end == len(best) else (times[end - 1] + times[end]) / 2)
        index = int(best[start])
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot([left, right], [1.06, 1.06], color=colour, linewidth=4, solid_capstyle="butt", clip_on=False)
        if right - left >= shortest_s or len(best) == 1:
            axes.text((left + right) / 2, 1.1, labels[index], ha="center", va="bottom", size=8, parse_math=False)
