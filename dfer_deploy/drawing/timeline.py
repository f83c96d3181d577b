"""A picture of the class probabilities over time, with one panel for each track.

Few windows are drawn as curves. Classes differ in colour, line and marker, and the most probable one is written above.
The colours are Okabe and Ito's ("Color Universal Design", 2008), which colour-blind people can distinguish. Many
windows are drawn as bands, because curves would overlap too much. A band is darker where its class is more probable.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.timed import MIN_INTERVAL_S
from dfer_deploy.drawing.fonts import font_paths
from dfer_deploy.files import atomic_file
from dfer_deploy.inference.recording import Recording, TrackSummary
from dfer_deploy.inference.windows import Window
from dfer_deploy.runtimes.predictor import Float32

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12
"""Limits the tracks that are drawn to those with the most windows."""

MAX_POINTS = 400
"""Limits the points of a curve. If a track has more windows, neighbours are averaged."""

MAX_CURVE_POINTS = 80
"""Limits the points that would fill a panel's width at the spacing of the longest track. With more, bands are drawn."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
_MARKERS_ON_A_CURVE = 14
_NARROWEST_LABEL = 0.06
"""The smallest share of the panel's width at which a span of one expression is named above the curves."""

_USUAL_FONT = "DejaVu Sans"
"""Matplotlib's own font."""


@dataclass(frozen=True)
class Curves:
    """Probabilities over time.

    Attributes:
        times: float64 [N], the middles of the windows in seconds.
        probabilities: float32 [N, C].
        start_s: start of the first window in seconds.
        end_s: end of the last window in seconds.
    """

    times: npt.NDArray[np.float64]
    probabilities: Float32
    start_s: float
    end_s: float

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The times in seconds, [N + 1], between which each point is the nearest one."""
        return np.concatenate([[self.start_s], (self.times[1:] + self.times[:-1]) / 2, [self.end_s]])


def write_timeline(
    path: Path, recording: Recording, number: int, title: str, *, interval_s: float, end_s: float
) -> bool:
    """Write the picture of ``timeline_png`` to a file, atomically; its folder must exist.

    Returns:
        False if no window of the input has a time; then nothing is written.
    """
    png = timeline_png(recording, number, title, interval_s=interval_s, end_s=end_s)
    if png is None:
        return False
    with atomic_file(path) as temporary:
        temporary.write_bytes(png)
    return True


def timeline_png(recording: Recording, number: int, title: str, *, interval_s: float, end_s: float) -> bytes | None:
    """Draw the twelve longest tracks of an input, each with at most 400 points.

    A window's answer is drawn at the middle of the window. The first answer extends to the start of its window, and the
    last one to the end of its window, as in the annotated video.

    Args:
        recording: recording of the windows.
        number: number of the input in the recording.
        title: title above the panels.
        interval_s: seconds between two frames of a window.
        end_s: end of the video in seconds, so that the picture also shows times without a face.

    Returns:
        The bytes of a PNG; None if no window of the input has a time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tracks, count = _longest(recording.tracks(number))
    if not tracks:
        return None
    if count > len(tracks):
        title = f"{title} ({len(tracks)} of {count} tracks, the longest)"
    with _fonts_for("".join([title, *recording.labels])):
        figure = Figure(figsize=(11, 1.5 + 2.1 * len(tracks)), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        _draw_tracks(figure, recording, number, tracks, interval_s, end_s)
        figure.suptitle(title, parse_math=False)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def averaged(windows: Iterable[Window], count: int, points: int) -> Curves:
    """Average neighbouring windows, of ``count`` in the order of time, to curves of at most ``points`` points."""
    together = -(-count // points)
    times: list[float] = []
    probabilities: list[Float32] = []
    start_s = end_s = 0.0
    for place, window in enumerate(windows):
        if place % together == 0:
            times.append(0.0)
            probabilities.append(np.zeros_like(window.probabilities))
        share = 1 / min(together, count - place // together * together)
        times[-1] += share * window.middle_s
        probabilities[-1] = probabilities[-1] + np.float32(share) * window.probabilities
        start_s, end_s = start_s if place else window.start_s, window.end_s
    return Curves(np.array(times), np.stack(probabilities), start_s, end_s)


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


def _draw_tracks(
    figure: Figure,
    recording: Recording,
    number: int,
    tracks: Sequence[TrackSummary],
    interval_s: float,
    end_s: float,
) -> None:
    labels = recording.labels
    end_s = max(end_s, *(track.end_s for track in tracks), MIN_INTERVAL_S)
    curves = [averaged(recording.windows(number, track.track), track.windows, MAX_POINTS) for track in tracks]
    # The last frame is shown until the time of the next one.
    curves = [replace(found, end_s=min(found.end_s + interval_s, end_s)) for found in curves]
    longest = max(curves, key=lambda found: len(found.times)).times
    are_bands = (len(longest) - 1) * end_s > MAX_CURVE_POINTS * (longest[-1] - longest[0])
    panels = figure.subplots(len(tracks), 1, sharex=True, squeeze=False)[:, 0]
    for axes, track, found in zip(panels, tracks, curves, strict=True):
        name = f"track {track.track}" if track.track else "whole picture"
        if are_bands:
            bands = _draw_bands(axes, found, labels)
            axes.set_ylabel(name, parse_math=False)
        else:
            _draw_curves(axes, found, labels, _NARROWEST_LABEL * end_s)
            axes.set_ylabel(f"{name}\nprobability", parse_math=False)
    # The whole video, so that times without a face are visible.
    panels[-1].set_xlim(0, end_s)
    panels[-1].set_xlabel("time in the video, s (middle of each window)")
    if are_bands:
        figure.colorbar(bands, ax=panels, label="probability", fraction=0.03, pad=0.01, aspect=30)
        return
    handles, names = panels[0].get_legend_handles_labels()
    # As many columns as fit, because matplotlib cuts long names off at the picture's edges.
    for columns in range(min(7, len(labels)), 0, -1):
        legend = figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            break
        legend.remove()


def _draw_bands(axes: Axes, curves: Curves, labels: Sequence[str]) -> Any:
    rows = np.arange(len(labels) + 1) - 0.5
    # One hue from light to dark is readable with every colour vision and in grey.
    bands = axes.pcolormesh(curves.edges, rows, curves.probabilities.T, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), list(labels), size=8, parse_math=False)
    axes.set_yticks(rows[1:-1], minor=True)
    axes.grid(axis="y", which="minor", color="0.8", linewidth=0.6)
    axes.tick_params(axis="y", which="both", length=0)
    return bands


def _draw_curves(axes: Axes, curves: Curves, labels: Sequence[str], narrowest_s: float) -> None:
    times = np.concatenate([[curves.start_s], curves.times, [curves.end_s]])
    values = np.concatenate([curves.probabilities[:1], curves.probabilities, curves.probabilities[-1:]])
    points = len(curves.times)
    every = max(1, points // _MARKERS_ON_A_CURVE)
    for index, name in enumerate(labels):
        axes.plot(
            times, values[:, index], label=name,
            color=_COLOURS[index % len(_COLOURS)], linestyle=_LINES[index % len(_LINES)], linewidth=1.5, clip_on=False,
            marker=_MARKERS[index % len(_MARKERS)], markersize=4.5,
            # Curves may overlap, so their markers are at different places. The two end points are not windows.
            markevery=list(range(1 + index * every // len(labels), points + 1, every)),
        )  # fmt: skip
    axes.set_ylim(-0.03, 1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    _name_the_spans(axes, curves, labels, narrowest_s)


def _name_the_spans(axes: Axes, curves: Curves, labels: Sequence[str], narrowest_s: float) -> None:
    """Write the most probable expression above each span of time, if there is room."""
    edges, best = curves.edges, curves.probabilities.argmax(axis=1)
    starts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
    for start, end in itertools.pairwise(starts):
        left, right, index = float(edges[start]), float(edges[end]), int(best[start])
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot([left, right], [1.06, 1.06], color=colour, linewidth=4, solid_capstyle="butt", clip_on=False)
        if right - left >= narrowest_s or len(best) == 1:
            axes.text((left + right) / 2, 1.1, labels[index], ha="center", va="bottom", size=8, parse_math=False)


@contextlib.contextmanager
def _fonts_for(text: str) -> Iterator[None]:
    """Let matplotlib draw these characters with this machine's fonts, without its warnings about missing ones."""
    import warnings

    from matplotlib import rc_context

    with warnings.catch_warnings(), rc_context({"font.family": _families(text)}):
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


def _families(text: str) -> list[str]:
    """Matplotlib's own font, and fonts of this machine with characters that it may lack."""
    from matplotlib import font_manager

    families = [_USUAL_FONT]
    for path in font_paths(text):
        font_manager.fontManager.addfont(path)
        families.append(font_manager.get_font(path).family_name)
    return families
