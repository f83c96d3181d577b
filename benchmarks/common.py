"""The common parts of the benchmarks: the model with random weights, turns of the contestants, results and pictures.

``OMP_WAIT_POLICY`` is not set: the reference implementation does not set it, and the value PASSIVE of our command line
makes a small model in PyTorch twice as slow. PyTorch's threads then spin for less than a millisecond into another
contestant's turn (libgomp's manual, GOMP_SPINCOUNT).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_deploy import __version__
from dfer_deploy.console import progress_bar, stdout
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import atomic_file, check_outputs, write_json
from dfer_deploy.measurement.bench import machine
from dfer_deploy.measurement.bench_result import Spread, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can distinguish. Markers and labels carry the same
information."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def parser(script: str, documentation: str | None, *, rounds: bool = True) -> argparse.ArgumentParser:
    """Return a parser for the options of every benchmark. Results and pictures are named after the script."""
    stem = Path(script).stem
    options = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a tiny model and few rounds, to see that it runs")
    if rounds:
        options.add_argument("--rounds", type=positive, help="alternations of the contestants (default: 5, quick: 2)")
    options.add_argument("--json", type=Path, default=Path(f"{stem}.json"), help="the result (default: %(default)s)")
    options.add_argument("--plot", type=Path, default=Path(f"{stem}.png"), help="the picture (default: %(default)s)")
    return options


def parsed(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and set the number of rounds.

    Outputs that cannot be written are refused here, before minutes of measuring.
    """
    arguments = options.parse_args()
    try:
        check_outputs({"--json": arguments.json, "--plot": arguments.plot}, [])
    except DferDeployError as error:
        options.error(str(error))
    if "rounds" in arguments:
        arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    return arguments


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall time of one call in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def take_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Time every contestant once a round. Each round begins with another contestant.

    Args:
        contestants: functions to time, by name; each is called once before.
        rounds: number of rounds.
        seconds: duration for which a short contestant is repeated in each round; its mean counts.

    Returns:
        Seconds of one call by name, one value for each round.
    """
    names = list(contestants)
    repeats = {}
    for name in names:
        contestants[name]()
        repeats[name] = max(1, round(seconds / max(1e-6, seconds_of(contestants[name]))))
    times: dict[str, list[float]] = {name: [] for name in names}
    with progress_bar() as bar:
        task = bar.add_task("", total=rounds * len(names))
        for turn in range(rounds):
            for name in rotated(names, turn):
                bar.update(task, description=name)
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    contestants[name]()
                times[name].append((time.perf_counter() - start) / repeats[name])
                bar.advance(task)
    return times


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names in their order, starting with another one in each turn."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def figures(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, smallest and largest of values that were measured once a round, and the values."""
    found = spread(values)
    return {"median": found.median, "low": found.low, "high": found.high, "rounds": list(values)}


def in_words(found: Mapping[str, Any]) -> str:
    """Return the result of ``figures`` as text for a table."""
    return str(Spread(found["median"], found["low"], found["high"]))


def write(arguments: argparse.Namespace, result: dict[str, Any], picture: Figure) -> None:
    """Write the result and the picture, with the machine and its load, and print their paths."""
    about = {"machine": machine(), "load_average": os.getloadavg()[0], "dfer_deploy": __version__}
    settings = {name: vars(arguments)[name] for name in ("quick", "rounds") if name in arguments}
    write_json(arguments.json, about | settings | result)
    with atomic_file(arguments.plot) as temporary:
        picture.savefig(temporary, format="png", metadata={"Software": None})
    stdout.print(
        f"{about['machine']}, load {about['load_average']:.1f}; wrote {arguments.json} and {arguments.plot}",
        markup=False,
    )


def figure(
    title: str, columns: int, *, width: float = 4.6, height: float = 3.6, quick: bool
) -> tuple[Figure, list[Axes]]:
    """Return an empty picture with ``columns`` axes side by side, each of the given size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width * columns, height), dpi=150, layout="constrained")
    FigureCanvasAgg(picture)
    places = list(picture.subplots(1, columns, squeeze=False)[0])
    for axes in places:
        axes.spines[["top", "right"]].set_visible(False)
    picture.suptitle(f"{title} ({'a tiny model' if quick else 'ViT-B/32'}, random weights)")
    return picture, places


def draw_bars(axes: Axes, label: str, rows: Mapping[str, Sequence[float]]) -> None:
    """Draw horizontal bars of medians, with a dot for every round and the median as text."""
    names = list(rows)
    medians = [statistics.median(values) for values in rows.values()]
    largest = max(max(values) for values in rows.values())
    axes.barh(names, medians, color=[COLOURS[place % len(COLOURS)] for place in range(len(names))], alpha=0.8)
    for place, (values, median) in enumerate(zip(rows.values(), medians, strict=True)):
        if len(values) > 1:
            axes.plot(values, [place] * len(values), "o", color="black", markersize=3)
        text = f"{median:.3g}" if median < 100 else f"{median:.0f}"
        axes.text(max(values) + 0.02 * largest, place, text, va="center", size=8)
    axes.set_xlim(0, 1.25 * largest)
    axes.locator_params(axis="x", nbins=6)
    axes.invert_yaxis()
    axes.set_xlabel(label)


def draw_lines(
    axes: Axes, x: Sequence[float], lines: Mapping[str, Iterable[Sequence[float]]], *, label: str, x_label: str
) -> None:
    """Draw for each entry a line of medians with the range over the rounds, and a legend."""
    for place, (name, points) in enumerate(lines.items()):
        spreads = [spread(values) for values in points]
        medians = [found.median for found in spreads]
        below = [found.median - found.low for found in spreads]
        above = [found.high - found.median for found in spreads]
        axes.errorbar(
            x[: len(medians)], medians, [below, above], color=COLOURS[place], marker=MARKERS[place], markersize=4,
            capsize=2, linewidth=1.2, label=name,
        )  # fmt: skip
    axes.set_xlabel(x_label)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def positive(text: str) -> int:
    """Parse a number of an option, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small, expected at least 1")
    return value
