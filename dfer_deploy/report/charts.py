"""Draw the charts of a report as inline SVG, whose text is text and whose colours are those of the page.

Curves differ in marker and line, not only in colour. The colours are from Okabe and Ito's palette ("Color Universal
Design", 2008), which colour-blind people can distinguish.
"""

from __future__ import annotations

import functools
import io
import re
import statistics
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dfer_deploy.drawing.pictures import CELL, CELL_INCHES, INK, MUTED, ON_CELL, draw_confusion
from dfer_deploy.measurement.bench_result import REQUESTS_FOR_P99, BenchResult
from dfer_deploy.metrics import CalibrationBin, Int64
from dfer_deploy.verification.statistics import Interval

_BAND = "#dfe9f1"
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))

_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    _BAND: "var(--band)",
    CELL: "var(--cell)",
    ON_CELL: "var(--on-cell)",
} | {colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES)}
"""The variable of the page's style sheet for each colour, so that charts have a light and a dark form."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dfer-deploy",
    "font.size": 9,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}

_MAX_LABEL_LENGTH = 24
"""Largest number of characters of a name beside an axis, which leaves room for the chart. The tables have full
names."""

_P = ParamSpec("_P")


def _styled(draw: Callable[_P, str]) -> Callable[_P, str]:
    @functools.wraps(draw)
    def styled(*arguments: _P.args, **options: _P.kwargs) -> str:
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            # Refers to matplotlib's own font, which is only used for measuring: the browser draws the text.
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
            return draw(*arguments, **options)

    return styled


@_styled
def confusion_chart(name: str, whose: str, confusion: Int64, class_names: Sequence[str]) -> str:
    """Draw a confusion matrix (``pictures.draw_confusion``). The time grows with the square of the number of classes.

    Args:
        name: prefix of the ids in this chart, unique on the page.
        whose: name of the predictor.
        confusion: counts, int64 [C, C]; rows are labels, columns are predictions.
        class_names: C class names.
    """
    names = _labels(class_names)
    longest = max(map(len, names))
    cells = CELL_INCHES * len(names)
    figure, axes = _figure(cells + 0.95 + 0.075 * longest, cells + 0.45 + 0.06 * longest)
    draw_confusion(axes, confusion, names)
    right = "; ".join(
        f"{label}: {confusion[row, row]:,} of {confusion[row].sum():,}" for row, label in enumerate(class_names)
    )
    title = f"confusion matrix of {whose} on {confusion.sum():,} clips"
    return _svg(figure, name, title, f"answered rightly: {right}")


@_styled
def difference_chart(name: str, rows: Sequence[tuple[str, str, float, Interval]], margin: float) -> str:
    """Draw differences with their intervals, and the margin as a band.

    Args:
        name: prefix of the ids in this chart, unique on the page.
        rows: candidate, ``UAR`` or ``WAR``, difference and interval in percentage points, from top to bottom.
        margin: in percentage points.
    """
    figure, axes = _figure(5.0, 0.9 + 0.36 * len(rows))
    axes.axvspan(-margin, margin, color=_BAND, linewidth=0)
    for bound in (-margin, margin):
        axes.axvline(bound, color=MUTED, linestyle="--", linewidth=0.9)
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, (_, measure, difference, interval) in enumerate(rows):
        series = 0 if measure == "UAR" else 1
        colour = _SERIES[series]
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([interval.low, interval.high], [place, place], linestyle="", marker="|", markersize=9, color=colour)
        axes.plot(difference, place, marker=_MARKERS[series], markersize=6.5, color=colour)
    axes.set_yticks(range(len(rows)), [f"{_labels([who])[0]}, Δ{measure}" for who, measure, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    reach = 1.12 * max([margin, *(abs(end) for *_, interval in rows for end in (interval.low, interval.high))])
    axes.set_xlim(-reach, reach)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"candidate minus reference, points (band: margin ± {margin:g})")
    return _svg(figure, name, "differences of UAR and WAR with their intervals and the margin")


@_styled
def recall_chart(name: str, deltas: Mapping[str, Sequence[float | None]], class_names: Sequence[str]) -> str:
    """Draw the change of each class's recall.

    Args:
        name: prefix of the ids in this chart, unique on the page.
        deltas: by candidate, the change of each class's recall in percentage points, None for a class without clips. At
            least one recall must have changed. Candidates without changes are not drawn.
        class_names: C class names.
    """
    shown = [(index, candidate, values) for index, (candidate, values) in enumerate(deltas.items()) if any(values)]
    figure, axes = _figure(5.0, 1.1 + len(class_names) * (0.16 + 0.09 * len(shown)))
    axes.axvline(0, color=INK, linewidth=0.8)
    height = 0.8 / len(shown)
    for line, (index, candidate, values) in enumerate(shown):
        colour, marker = _look(index)[:2]
        for place, value in enumerate(values):
            if value is not None:
                at = place - 0.4 + height * (line + 0.5)
                axes.plot([0, value], [at, at], color=colour, linewidth=2)
                axes.plot(value, at, marker=marker, markersize=5, color=colour)
        axes.plot([], [], color=colour, marker=marker, markersize=5, linewidth=2, label=_labels([candidate])[0])
    absent = {place for values in deltas.values() for place, value in enumerate(values) if value is None}
    labels = [f"{label} (no clip)" if place in absent else label for place, label in enumerate(_labels(class_names))]
    axes.set_yticks(range(len(class_names)), labels)
    axes.set_ylim(len(class_names) - 0.5, -0.5)
    reach = max([1.0, *(1.15 * abs(value) for values in deltas.values() for value in values if value is not None)])
    axes.set_xlim(-reach, reach)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("change of recall, percentage points")
    _legend(figure, len(shown))
    return _svg(figure, name, "change of each class's recall")


@_styled
def error_chart(name: str, quantiles: Mapping[str, Mapping[float, float]], limit: float) -> str:
    """Draw the quantiles of the logit errors on a logarithmic axis.

    Args:
        name: prefix of the ids in this chart, unique on the page.
        quantiles: by candidate, the error for each quantile; at least one error must be above 0.
        limit: largest accepted error.
    """
    figure, axes = _figure(5.0, 3.2)
    places = sorted({quantile for errors in quantiles.values() for quantile in errors})
    for index, (candidate, errors) in enumerate(quantiles.items()):
        colour, marker, line = _look(index)
        shown = [(places.index(q), error) for q, error in sorted(errors.items()) if error > 0]
        xs, ys = [x for x, _ in shown], [y for _, y in shown]
        axes.plot(xs, ys, color=colour, marker=marker, linestyle=line, markersize=5, label=_labels([candidate])[0])
    axes.axhline(limit, color=INK, linestyle="--", linewidth=0.9)
    axes.annotate(f"limit {limit:g}", (0, limit), xytext=(0, 3), textcoords="offset points", size=8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(
        range(len(places)), ["largest" if q == 1 else "median" if q == 0.5 else f"{100 * q:g} %" for q in places]
    )
    axes.set_xlabel("share of all logits whose error is at most …")
    axes.set_ylabel("|Δlogit|")
    axes.grid(axis="y")
    _legend(figure, len(quantiles))
    return _svg(figure, name, "quantiles of the errors of logits")


@_styled
def calibration_chart(name: str, curves: Sequence[tuple[Sequence[str], Sequence[CalibrationBin]]]) -> str:
    """Draw a reliability diagram: the share of correct answers over the confidence.

    The reference's curve comes first. Each curve has the names of all predictors to which it belongs. The area of a
    point is the share of the clips in it.
    """
    figure, axes = _figure(5.0, 4.2)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=0.9)
    for index, (names, bins) in enumerate(curves):
        colour, marker, line = (INK, "o", "-") if index == 0 else _look(index)
        label = "\n= ".join(_labels(names))
        xs, ys = [b.confidence for b in bins], [b.accuracy for b in bins]
        sizes = [12 + 300 * b.clips / sum(b.clips for b in bins) for b in bins]
        axes.plot(xs, ys, color=colour, linestyle=line, linewidth=1)
        axes.scatter(xs, ys, sizes, color=colour, marker=marker, alpha=0.6, linewidths=0, label=label)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("confidence (dotted: perfect calibration; area: clips)")
    axes.set_ylabel("share answered rightly")
    axes.grid()
    if len(curves) > 1:
        _legend(figure, len(curves))
    return _svg(figure, name, "reliability diagram")


@_styled
def load_chart(name: str, result: BenchResult) -> str:
    """Draw latency over throughput, one point for each number of requests in flight, and the in-process predictors."""
    figure, axes = _figure(5.0, 3.6)
    tail = "p99" if result.requests >= REQUESTS_FOR_P99 else "p95"
    served = sorted(result.served, key=lambda level: level.concurrency)
    for index, quantile in enumerate(("p50", tail) if served else ()):
        colour, marker, line = _look(index)
        xs = [statistics.median(level.throughput) for level in served]
        ys = [level.median(f"{quantile}_ms") for level in served]
        spread = [
            [x - min(level.throughput) for x, level in zip(xs, served, strict=True)],
            [max(level.throughput) - x for x, level in zip(xs, served, strict=True)],
        ]
        axes.errorbar(
            xs,
            ys,
            xerr=spread,
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=5,
            capsize=2,
            label=f"served, {quantile}",
        )
        for level, x, y in zip(served, xs, ys, strict=True):
            axes.annotate(f"{level.concurrency}", (x, y), xytext=(4, 4), textcoords="offset points", size=8)
    for index, local in enumerate(result.in_process):
        colour, marker = _look(index + 2)[:2]
        x, y = statistics.median(local.throughput), float(np.median(local.latency_ms))
        axes.plot(
            x,
            y,
            color=colour,
            marker=marker,
            markersize=7,
            linestyle="",
            fillstyle="none",
            label=f"{_labels([local.name])[0]}, p50",
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid()
    axes.set_xlabel("clips a second (bar: range of the rounds)")
    axes.set_ylabel("latency, ms")
    _legend(figure, 2 + len(result.in_process))
    return _svg(figure, name, "latency over throughput")


def _labels(names: Sequence[str]) -> list[str]:
    """Return names short enough to leave room for the chart."""
    return [name if len(name) <= _MAX_LABEL_LENGTH else f"{name[: _MAX_LABEL_LENGTH - 1]}…" for name in names]


def _look(index: int) -> tuple[str, str, Any]:
    """Return colour, marker and line of a series."""
    place = index % len(_SERIES)
    return _SERIES[place], _MARKERS[place], _LINES[place]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure in inches. At the figure's own size on the page, text of 9 points is 12 pixels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _legend(figure: Figure, entries: int) -> None:
    figure.legend(loc="outside upper left", ncols=min(entries, 2), handlelength=3)


def _svg(figure: Figure, name: str, title: str, description: str = "") -> str:
    """Return the drawing as an HTML element, without a namespace, with unique ids and the page's colours and font."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - matplotlib wrote it
    width = float(root.attrib["viewBox"].split()[2])
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.rpartition("}")[2], _own(key.rpartition("}")[2], value, name))
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "style": f"max-width: {width * 4 / 3:.0f}px; stroke-linejoin: round",
    }
    for tag, text in (("desc", description), ("title", title)):
        if text:
            words = ElementTree.Element(tag)
            words.text = text
            root.insert(0, words)
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"(font: [^;]*?px) [^;]*", r"\1 system-ui, sans-serif", value)
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, variable)
    return value
