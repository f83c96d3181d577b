"""Choose serving options from measurements: one option after the other, the smallest value first.

Every stage measures the best configuration so far again, together with those that differ from it in one option, so that
a drift of the machine between two stages does not affect the choice. Combinations of several options are not tried.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dfer_deploy.bundles.bundle import MAX_BATCH, ServingOptions, Target
from dfer_deploy.errors import ServerError, spelled
from dfer_deploy.measurement.bench_result import Spread, ratio
from dfer_deploy.measurement.trials import Candidate, Load

QUEUE_DELAYS_US = (0, 100, 500, 2000)
"""The queue delays in microseconds that are tried."""

GRAPHS_COVER = 0.95
"""The share of the executions that the recorded CUDA graphs should cover."""

MAX_GRAPHS = 8
"""Largest number of CUDA graphs. Each takes memory for each instance and is recorded when the server starts."""

Measure = Callable[[str, Sequence[ServingOptions]], Sequence[Candidate]]
"""Measures configurations in turn. The first argument names the option in which they differ."""


@dataclass(frozen=True)
class Stage:
    """A comparison of configurations that differ in one option.

    Attributes:
        what: the option in words.
        candidates: all measured configurations, the simplest first.
        winner: index of the configuration that was kept.
        reason: why it was kept, as a sentence.
    """

    what: str
    candidates: tuple[Candidate, ...]
    winner: int
    reason: str


@dataclass(frozen=True)
class Proposal:
    """The serving options that the measurements recommend.

    Attributes:
        serving: the options.
        point: the load at which they reached their throughput.
        within_budget: whether the 99th percentile of the latency keeps the limit; true if there is no limit.
        opt_batch: the usual batch, for the builder of TensorRT engines.
        stages: all comparisons.
    """

    serving: ServingOptions
    point: Load
    within_budget: bool
    opt_batch: int
    stages: tuple[Stage, ...]


def propose(
    current: ServingOptions,
    target: Target,
    concurrencies: Sequence[int],
    measure: Measure,
    *,
    most_instances: int,
    p99_ms: float | None = None,
) -> Proposal:
    """Try options, each with the best values so far: instances, queue delay, largest batch, CUDA graphs.

    The number of instances is doubled as long as that wins. Delays and batches are tried if several requests are in
    flight. The largest batch is halved below the largest that occurred, and doubled if it was the limit. The target
    ``tensorrt`` keeps its largest batch, because another one needs other engines. CUDA graphs are tried for
    ``tensorrt`` only.

    Args:
        current: the bundle's options, which are measured too.
        target: target of the bundle.
        concurrencies: numbers of requests in flight to measure.
        measure: the function that measures.
        most_instances: largest number of instances to try.
        p99_ms: largest accepted 99th percentile of the latency in milliseconds, or None.

    Raises:
        DferDeployError: the simplest configuration of a stage could not be measured.
    """
    least = dataclasses.replace(current, instances=1, queue_delay_us=0)
    few = [least, dataclasses.replace(least, instances=min(2, most_instances)), current]
    stages = [_stage("instances", few, measure, p99_ms)]
    best = _best(stages)
    while best.serving.instances >= max(candidate.serving.instances for candidate in stages[-1].candidates):
        doubled = min(2 * best.serving.instances, most_instances)
        if doubled <= best.serving.instances:
            break
        more = [best.serving, dataclasses.replace(best.serving, instances=doubled)]
        stages.append(_stage("instances", more, measure, p99_ms))
        best = _best(stages)
    if max(concurrencies) > 1:
        delayed = [dataclasses.replace(best.serving, queue_delay_us=delay) for delay in QUEUE_DELAYS_US]
        stages.append(_stage("queue delay", [best.serving, *delayed], measure, p99_ms))
        best = _best(stages)
        batches = () if target == "tensorrt" else _other_batches(best, max(concurrencies))
        if batches:
            others = [dataclasses.replace(best.serving, max_batch_size=batch) for batch in batches]
            stages.append(_stage("largest batch", [best.serving, *others], measure, p99_ms))
            best = _best(stages)
    if target == "tensorrt":
        graphs = graph_batches(best.loads)
        if graphs != best.serving.cuda_graph_batches:
            recorded = dataclasses.replace(best.serving, cuda_graph_batches=graphs)
            stages.append(_stage("CUDA graphs", [best.serving, recorded], measure, p99_ms))
            best = _best(stages)
    point = operating_point(best, p99_ms)
    fallback = point or min(best.loads, key=lambda load: load.p99_ms)
    return Proposal(best.serving, fallback, point is not None, usual_batch(fallback), tuple(stages))


def operating_point(candidate: Candidate, p99_ms: float | None) -> Load | None:
    """Return the load with the highest median throughput within the latency limit; None if all exceed it."""
    within = [load for load in candidate.loads if p99_ms is None or load.p99_ms <= p99_ms]
    return max(within, key=lambda load: statistics.median(load.throughput), default=None)


def wins(challenger: Load, incumbent: Load) -> Spread | None:
    """Return the ratio of the throughputs, round by round, if the challenger wins; else None.

    The challenger wins if its median gain is larger than the whole range of the ratio over the rounds, so it was faster
    in every round. If two are equally fast, with normally distributed noise, this calls the second faster once in 23
    times with three rounds and once in 300 times with five.
    """
    ratios = ratio(challenger.throughput, incumbent.throughput)
    return ratios if ratios.median - 1 > ratios.high - ratios.low else None


def choose(candidates: Sequence[Candidate], p99_ms: float | None) -> tuple[int, str]:
    """Return the index of the best candidate, and the reason.

    A candidate replaces a simpler one only if it ``wins``, or if the simpler one exceeds the latency limit. If all
    exceed it, the candidate with the lowest 99th percentile is the best.

    Args:
        candidates: the simplest first.
        p99_ms: largest accepted 99th percentile of the latency in milliseconds, or None.

    Raises:
        DferDeployError: the simplest candidate could not be measured, so there is nothing to compare with.
    """
    if not candidates[0].loads:
        raise ServerError(
            f"the simplest configuration could not be measured ({candidates[0].failure}), so nothing can be compared "
            f"with it; try again when the machine is quieter, or with more {spelled('rounds')}"
        )
    served = [index for index, candidate in enumerate(candidates) if candidate.loads]
    points = {index: point for index in served if (point := operating_point(candidates[index], p99_ms))}
    if not points:
        index = min(served, key=lambda index: min(load.p99_ms for load in candidates[index].loads))
        lowest = min(load.p99_ms for load in candidates[index].loads)
        return index, f"none keeps the 99th percentile within {p99_ms:g} ms; the lowest is {lowest:.3g} ms"
    first, *others = points
    best, reason = first, "" if first == served[0] else f"the first that keeps {p99_ms:g} ms"
    for index in others:
        if gain := wins(points[index], points[best]):
            best, reason = index, f"{gain} times the throughput of what is simpler, more than the rounds differ"
    return best, reason or "nothing more was faster by more than the rounds differ"


def graph_batches(loads: Sequence[Load]) -> tuple[int, ...]:
    """Return the batches for which CUDA graphs are worth recording.

    These are the fewest batches, at most 8, that together are 95 % of the executions of both models. Every load has the
    same weight, however many requests it had.
    """
    shares: dict[int, float] = {}
    for load in loads:
        counts = Counter[int]()
        for executions in load.batches.values():
            counts.update(executions)
        for batch, count in counts.items():
            shares[batch] = shares.get(batch, 0.0) + count / counts.total() / len(loads)
    chosen: list[int] = []
    # Of batches with equal shares, the smaller one comes first, because its launches take a larger part of its time.
    for batch, _ in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) == MAX_GRAPHS or sum(shares[other] for other in chosen) >= GRAPHS_COVER:
            break
        chosen.append(batch)
    return tuple(sorted(chosen))


def usual_batch(load: Load) -> int:
    """Return the batch in which the busiest model executes the median clip."""
    executions: Mapping[int, int] = next(iter(load.batches.values()))
    half = sum(batch * count for batch, count in executions.items()) / 2
    clips = 0
    for batch, count in sorted(executions.items()):
        clips += batch * count
        if clips >= half:
            return batch
    return 1


def _stage(what: str, options: Sequence[ServingOptions], measure: Measure, p99_ms: float | None) -> Stage:
    # The sort is stable: among equal instances and delays, the best so far comes first.
    ordered = sorted(dict.fromkeys(options), key=lambda serving: (serving.instances, serving.queue_delay_us))
    candidates = tuple(measure(what, ordered))
    return Stage(what, candidates, *choose(candidates, p99_ms))


def _best(stages: Sequence[Stage]) -> Candidate:
    return stages[-1].candidates[stages[-1].winner]


def _other_batches(best: Candidate, concurrency: int) -> tuple[int, ...]:
    occurred = max(batch for load in best.loads for counts in load.batches.values() for batch in counts)
    limit = best.serving.max_batch_size
    smaller = {batch for batch in (occurred // 4, occurred // 2) if batch >= 1}
    larger = {min(2 * limit, MAX_BATCH)} if occurred == limit < concurrency else set()
    return tuple(sorted((smaller | larger) - {limit}))
