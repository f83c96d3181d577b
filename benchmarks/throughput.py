"""Measure with perf_analyzer how a served bundle behaves under load.

    python benchmarks/throughput.py [--quick] [--rounds N] [--concurrency 1,2,4,8] [--batch 1,2,4] [--json FILE] …

Requests use gRPC, HTTP, and gRPC with the tensors in the system's shared memory. Each way is loaded with one clip in a
request and an increasing number of requests in flight, then with one request in flight and an increasing number of
clips in it. In every round the graphs are measured in this process too. The result shows:

- the server's overhead: the lost share of the in-process throughput, round by round; at saturation also compared with
  in-process executions of the batches that the server made;
- the saturation point: the fewest requests in flight whose median lies within the range of the best;
- the batcher's effect: inferences / executions of the image encoder, from Triton's statistics;
- the parts of a request's time: queue and execution in the server, and the rest (client and network).

The server of this benchmark runs on the loopback and lets clients register shared memory, which
``dfer-deploy serve`` does not allow. On two cores a full run takes more than a quarter of an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import COLOURS, draw_lines, figure, figures, in_words, parsed, parser, seconds_of, write
from random_model import exported, random_checkpoint

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import progress_bar, stdout, table
from dfer_deploy.measurement.bench_result import ratio
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.triton.environment import triton_environment
from dfer_deploy.triton.installation import RESTRICTED
from dfer_deploy.triton.perf_analyzer import LoadResult, measure_load
from dfer_deploy.triton.server import TritonServer
from dfer_deploy.triton.statistics import executed_batches

WAYS = ("gRPC", "HTTP", "shared memory")
SECONDS = {True: 0.5, False: 4.0}
"""Approximate duration of one measurement, with --quick and without."""


@dataclass(frozen=True)
class Level:
    """A load: ``concurrency`` requests in flight with ``batch`` clips in each."""

    way: str
    concurrency: int
    batch: int

    def __str__(self) -> str:
        return f"{self.way}, {self.concurrency} in flight, {self.batch} clip(s) in each"


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--concurrency", type=_numbers, help="requests in flight (default: 1,2,4,8, quick: 1,2)")
    options.add_argument("--batch", type=_numbers, help="clips in a request (default: 1,2,4, quick: 1,2)")
    arguments = parsed(options)
    concurrencies = arguments.concurrency or ((1, 2) if arguments.quick else (1, 2, 4, 8))
    batches = arguments.batch or ((1, 2) if arguments.quick else (1, 2, 4))
    with tempfile.TemporaryDirectory() as folder:
        bundle = exported(random_checkpoint(Path(folder), quick=arguments.quick))
        result = measure(bundle, levels(concurrencies, batches), rounds=arguments.rounds, quick=arguments.quick)
    rows = [
        (
            row["level"], in_words(row["throughput"]), in_words(row["against_in_process"]),
            f"{row['p50_ms']:.1f}", f"{row['queue_ms']:.1f}", f"{row['execution_ms']:.1f}", f"{row['else_ms']:.1f}",
            f"{row['clips_per_execution']:.2f}",
        )
        for row in result["levels"]
    ]  # fmt: skip
    rows.append(("in process", in_words(result["in_process"]), "", "", "", "", "", ""))
    table(
        "clips of 16 frames: median (range) over the rounds",
        ("", "clips/s", "against in process", "p50 ms", "queue", "execution", "all else", "clips in an execution"),
        rows,
    )
    for way, found in result["saturation"].items():
        stdout.print(
            f"{way}: saturated from {found['concurrency']} in flight, where the server costs {found['server_adds']} "
            f"against the same executions in process, and {found['server_adds_to_single_clips']} against single clips"
        )
    write(arguments, result, draw(result, quick=arguments.quick))


def levels(concurrencies: Sequence[int], batches: Sequence[int]) -> tuple[Level, ...]:
    """Return two axes for every way: requests in flight with one clip each, and clips in a single request."""
    axes = [(concurrency, 1) for concurrency in concurrencies] + [(1, batch) for batch in batches]
    return tuple(Level(way, *place) for way in WAYS for place in dict.fromkeys(axes))


def measure(bundle: Bundle, loads: Sequence[Level], *, rounds: int, quick: bool) -> dict[str, Any]:
    """Load one server with every level in turn, ``rounds`` times."""
    clips = drawn_clips(4, bundle.spec.clip.vision.image_size)
    environment = triton_environment()
    closed = tuple(name for name in RESTRICTED if name != "shared-memory")
    sharing = dataclasses.replace(environment, restricted=closed)
    encoder = bundle.contract.image_encoder.name
    largest = max(level.concurrency * level.batch for level in loads)
    in_process: dict[int, list[float]] = {2**power: [] for power in range((largest - 1).bit_length() + 1)}
    measured: dict[Level, list[LoadResult]] = {level: [] for level in loads}
    batches: dict[Level, list[Counter[int]]] = {level: [] for level in loads}
    with ExitStack() as stack:
        predictor = stack.enter_context(OnnxRuntimePredictor.from_bundle(bundle))
        server = stack.enter_context(TritonServer(sharing, bundle.model_repository))
        bar = stack.enter_context(progress_bar())
        contestants: list[int | Level] = [*in_process, *loads]
        task = bar.add_task("", total=rounds * len(contestants))
        predictor.predict(clips[:1])
        one_s = seconds_of(lambda: predictor.predict(clips[:1]))
        for turn in range(rounds):
            # The order is reversed every other round, so that none is always first or always follows the same one.
            for level in contestants if turn % 2 == 0 else reversed(contestants):
                bar.update(task, description=str(level) if isinstance(level, Level) else f"in process, batch {level}")
                if not isinstance(level, Level):
                    shown = clips[np.arange(level) % len(clips)]
                    count = max(3, round(SECONDS[quick] / one_s / level))
                    taken = (seconds_of(lambda s=shown: predictor.predict(s)) for _ in range(count))  # type: ignore[misc]
                    in_process[level].append(statistics.mean(taken))
                    bar.advance(task)
                    continue
                before = executed_batches(server.endpoints.grpc_url, encoder)
                url = server.endpoints.http_url if level.way == "HTTP" else server.endpoints.grpc_url
                measured[level] += measure_load(
                    environment, url, bundle.manifest.name, clips, [level.concurrency], batch=level.batch,
                    shared_memory=level.way == "shared memory",
                    requests=min(500, max(12 * level.concurrency, round(SECONDS[quick] / one_s / level.batch))),
                )  # fmt: skip
                batches[level].append(executed_batches(server.endpoints.grpc_url, encoder) - before)
                bar.advance(task)
    return summary(in_process, measured, batches)


def summary(
    seconds: Mapping[int, Sequence[float]],
    measured: Mapping[Level, Sequence[LoadResult]],
    batches: Mapping[Level, Sequence[Counter[int]]],
) -> dict[str, Any]:
    """Return the result of ``measure``, each value once a round.

    Args:
        seconds: seconds of one execution in process, by its batch.
        measured: the results of every level.
        batches: the encoder's executions of every level, by their batch.
    """
    in_process = [1 / value for value in seconds[1]]
    rows = []
    for level, results in measured.items():
        throughput = [found.throughput for found in results]
        queue, execution, whole = (
            statistics.median(values)
            for values in (
                [found.queue_ms for found in results],
                [found.compute_input_ms + found.compute_infer_ms + found.compute_output_ms for found in results],
                [found.avg_ms for found in results],
            )
        )
        rows.append(
            dataclasses.asdict(level)
            | {
                "level": str(level),
                "throughput": figures(throughput),
                "against_in_process": figures([a / b for a, b in zip(throughput, in_process, strict=True)]),
                "p50_ms": statistics.median(found.p50_ms for found in results),
                "p99_ms": statistics.median(found.p99_ms for found in results),
                "queue_ms": queue,
                "execution_ms": execution,
                "else_ms": max(0.0, whole - queue - execution),
                "clips_per_execution": clips_per_execution(sum(batches[level], Counter())),
            }
        )
    saturation = {}
    for way in dict.fromkeys(level.way for level in measured):
        by_concurrency = {
            level.concurrency: [found.throughput for found in results]
            for level, results in measured.items()
            if level.way == way and level.batch == 1
        }
        point = saturation_point(by_concurrency)
        alike = [
            in_process_throughput(counted, {batch: values[turn] for batch, values in seconds.items()})
            for turn, counted in enumerate(batches[Level(way, point, 1)])
        ]
        saturation[way] = {
            "concurrency": point,
            "server_adds": _missing(by_concurrency[point], alike),
            "server_adds_to_single_clips": _missing(by_concurrency[point], in_process),
        }
    return {"in_process": figures(in_process), "levels": rows, "saturation": saturation}


def saturation_point(throughput: Mapping[int, Sequence[float]]) -> int:
    """Return the fewest requests in flight whose median throughput lies within the range of the best."""
    best = max(throughput.values(), key=statistics.median)
    return min(number for number, rounds in throughput.items() if statistics.median(rounds) >= min(best))


def in_process_throughput(batches: Counter[int], seconds: Mapping[int, float]) -> float:
    """Return the clips a second of the same executions in this process.

    Args:
        batches: number of executions, by their batch; at least one.
        seconds: seconds of one execution, by its batch; values between the measured batches are interpolated.
    """
    sizes = sorted(seconds)
    spent = sum(
        count * float(np.interp(batch, sizes, [seconds[size] for size in sizes])) for batch, count in batches.items()
    )
    return sum(batch * count for batch, count in batches.items()) / spent


def _missing(throughput: Sequence[float], base: Sequence[float]) -> str:
    kept = ratio(throughput, base)
    return f"{1 - kept.median:.1%} ({1 - kept.high:.1%} to {1 - kept.low:.1%})"


def clips_per_execution(batches: Counter[int]) -> float:
    """Return inferences / executions, Triton's own measure of its batcher's effect."""
    return sum(batch * count for batch, count in batches.items()) / max(1, batches.total())


def draw(result: Mapping[str, Any], *, quick: bool) -> Any:
    """Draw throughput over requests in flight and over clips in a request, and the parts of a request's time."""
    rows = result["levels"]
    picture, (flight, request, where) = figure("A served bundle under load", 3, quick=quick)
    for axes, swept, fixed, label in (
        (flight, "concurrency", "batch", "requests in flight, one clip in each"),
        (request, "batch", "concurrency", "clips in a request, one in flight"),
    ):
        x = sorted({row[swept] for row in rows if row[fixed] == 1})
        lines = {way: [r["throughput"]["rounds"] for r in rows if r["way"] == way and r[fixed] == 1] for way in WAYS}
        draw_lines(axes, x, lines, label="clips/s", x_label=label)
        axes.set_xticks(x)
        alone = result["in_process"]
        axes.axhspan(alone["low"], alone["high"], color="0.85", zorder=0)
        axes.axhline(alone["median"], color="0.4", linestyle="--", linewidth=1, zorder=1, label="in process")
        axes.set_ylim(top=1.1 * max(alone["high"], *(row["throughput"]["high"] for row in rows)))
        _legend_above(axes)
    shown = [row for row in rows if row["way"] == "gRPC" and row["batch"] == 1]
    labels = [str(row["concurrency"]) for row in shown]
    left = [0.0] * len(shown)
    parts = (("queue_ms", "queue", ""), ("execution_ms", "execution", "//"), ("else_ms", "client, network", ".."))
    for colour, (key, name, hatch) in zip(COLOURS, parts, strict=False):
        widths = [row[key] for row in shown]
        where.barh(labels, widths, left=left, color=colour, hatch=hatch, edgecolor="white", label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, row in enumerate(shown):
        where.text(left[place] * 1.02, place, f"{row['clips_per_execution']:.2g} clips/execution", va="center", size=7)
    where.set_xlim(0, 1.45 * max(left))
    where.invert_yaxis()
    where.set_xlabel("mean ms of a gRPC request")
    where.set_ylabel("requests in flight")
    _legend_above(where)
    return picture


def _legend_above(axes: Any) -> None:
    """Put the legend where it does not cross a line."""
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({1, *(int(part) for part in text.split(","))}))
    except ValueError:
        numbers = (0,)
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 1 on such as 1,2,4")
    return numbers


if __name__ == "__main__":
    main()
