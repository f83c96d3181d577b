"""What the charts of a report draw: the numbers that they were given, at the places that the axes name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfer_deploy.measurement.bench_result import BenchResult, InProcess, Served, Subject
from dfer_deploy.metrics import CalibrationBin
from dfer_deploy.report import charts
from dfer_deploy.triton.perf_analyzer import LoadResult
from dfer_deploy.verification.statistics import Interval


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every chart, in the order in which they are drawn."""
    found: list[Axes] = []

    def svg(figure: Figure, name: str, title: str, description: str = "") -> str:
        found.extend(figure.axes)
        return ""

    monkeypatch.setattr(charts, "_svg", svg)
    return found


def points(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """x and y of every line with places."""
    lines = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.lines]
    return [(x.tolist(), y.tolist()) for x, y in lines if x.size]


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_an_interval_reaches_from_its_low_to_its_high_end_beside_its_name_and_the_margin(drawn: list[Axes]) -> None:
    rows = [("a", "UAR", -0.25, Interval(-1.5, 0.75, "exact")), ("b", "WAR", 0.5, Interval(0.25, 1.0, "exact"))]
    charts.difference_chart("d", rows, 0.5)
    (axes,) = drawn
    assert labels(axes) == ["a, ΔUAR", "b, ΔWAR"]
    for place, (_, _, difference, interval) in enumerate(rows):
        assert points(axes).count(([interval.low, interval.high], [place, place])) == 2, "the line and its ends"
        assert ([difference], [place]) in points(axes)
    for bound in (-0.5, 0.5):
        assert ([bound, bound], [0, 1]) in points(axes)
    low, high = axes.get_xlim()
    assert low < -1.5 < 1.0 < high
    assert axes.yaxis_inverted(), "the first row is at the top"


def test_a_recall_that_fell_points_to_the_left_of_its_class(drawn: list[Axes]) -> None:
    charts.recall_chart("r", {"same": [0.0, 0.0, None], "b": [-3.0, 2.0, None]}, ("x", "y", "z"))
    (axes,) = drawn
    assert labels(axes) == ["x", "y", "z (no clip)"]
    bars = [(x, y) for x, y in points(axes) if len(x) == 2 and x[0] == 0 and x[1] != 0]
    assert [x[1] for x, _ in bars] == [-3.0, 2.0]
    assert [round(y[0]) for _, y in bars] == [0, 1]


def test_errors_stand_above_their_quantiles_and_the_limit_across(drawn: list[Axes]) -> None:
    charts.error_chart("e", {"a": {1.0: 4e-3, 0.5: 1e-4, 0.99: 2e-3}, "b": {0.5: 0.0, 1.0: 1e-5}}, 0.01)
    (axes,) = drawn
    assert [label.get_text() for label in axes.get_xticklabels()] == ["median", "99 %", "largest"]
    assert ([0, 1, 2], [1e-4, 2e-3, 4e-3]) in points(axes)
    assert ([2], [1e-5]) in points(axes), "a logarithmic axis has no place for an error of 0"
    assert ([0, 1], [0.01, 0.01]) in points(axes)
    assert axes.get_yscale() == "log"


def test_calibration_is_accuracy_over_confidence_with_points_of_the_clips_area(drawn: list[Axes]) -> None:
    charts.calibration_chart("c", [(["a", "b"], [CalibrationBin(0.4, 0.25, 10), CalibrationBin(0.9, 0.8, 30)])])
    (axes,) = drawn
    assert ([0.4, 0.9], [0.25, 0.8]) in points(axes)
    assert ([0, 1], [0, 1]) in points(axes)
    assert axes.get_legend_handles_labels()[1] == ["a\n= b"]
    (scattered,) = axes.collections
    sizes: Any = scattered.get_sizes()
    assert (sizes[1] - 12) / (sizes[0] - 12) == pytest.approx(3)


def test_calibration_curves_differ_in_marker_and_line_from_the_reference_s(drawn: list[Axes]) -> None:
    bins = [CalibrationBin(0.4, 0.25, 10), CalibrationBin(0.9, 0.8, 30)]
    charts.calibration_chart("c", [([name], bins) for name in ("reference", "a", "b")])
    (axes,) = drawn
    markers = {scattered.get_paths()[0].vertices.tobytes() for scattered in axes.collections}
    lines = {line.get_linestyle() for line in axes.lines[1:]}
    assert (len(markers), len(lines)) == (3, 3)


def test_names_in_any_writing_are_drawn_without_a_word_about_fonts() -> None:
    svg = charts.confusion_chart("c", "a", np.eye(2, dtype=np.int64), ("中立", "กลัว"))  # warnings are errors here
    assert "中立" in svg
    assert "กลัว" in svg


def test_latency_stands_over_throughput_by_requests_in_flight(drawn: list[Axes]) -> None:
    def load(concurrency: int, throughput: float) -> LoadResult:
        times = (10.0 * concurrency, 20.0 * concurrency, 30.0 * concurrency)
        return LoadResult(concurrency, throughput, *times, 1.0, 0.0, 0.0, 1.0, 0.0, None, None)

    served = tuple(
        Served(f"{n} in flight", n, tuple(load(n, value) for value in (8.0 * n, 10.0 * n, 11.0 * n))) for n in (2, 1)
    )
    local = InProcess("onnxruntime fp32", (20.0, 22.0, 21.0), (50.0, 40.0, 45.0, 60.0))
    charts.load_chart("l", BenchResult("machine", Subject("aa" * 32, "bb" * 32, "fp32"), 100, (local,), served))
    (axes,) = drawn
    assert ([10.0, 20.0], [10.0, 20.0]) in points(axes)
    assert ([10.0, 20.0], [30.0, 60.0]) in points(axes)
    assert ([21.0], [47.5]) in points(axes)
    assert [text.get_text() for text in axes.texts] == ["1", "2", "1", "2"]
