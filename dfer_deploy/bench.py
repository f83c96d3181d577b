"""How fast a served model answers, next to the same graphs and the same checkpoint in this process.

The contestants alternate within one run, round by round, and are compared by ratios within a round: on a machine that
others use too, an absolute time says little.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfer_deploy.console import progress_bar
from dfer_deploy.runtimes.predictor import Frames, Predictor
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.perf_analyzer import LoadResult, measure_load

_SECONDS_PER_MEASUREMENT = 3.0
_MIN_CLIPS = 3


@dataclass(frozen=True)
class InProcess:
    """A predictor in this process, one clip at a time.

    Attributes:
        name: of the predictor.
        throughput: clips a second, one value for each round.
        latency_ms: of every single clip of all rounds.
    """

    name: str
    throughput: tuple[float, ...]
    latency_ms: tuple[float, ...]


@dataclass(frozen=True)
class Served:
    """The served ensemble at one concurrency; ``rounds`` holds perf_analyzer's result of each round."""

    name: str
    concurrency: int
    rounds: tuple[LoadResult, ...]

    @property
    def throughput(self) -> tuple[float, ...]:
        return tuple(result.throughput for result in self.rounds)

    def median(self, field: str) -> float:
        """Median over the rounds of a field of ``LoadResult``."""
        return float(statistics.median(getattr(result, field) for result in self.rounds))


@dataclass(frozen=True)
class BenchResult:
    """All contestants of one run.

    Attributes:
        machine: what the absolute numbers belong to.
        requests: how many requests perf_analyzer counted in each measurement.
        in_process: predictors in this process.
        served: the server, by concurrency.
    """

    machine: str
    requests: int
    in_process: tuple[InProcess, ...]
    served: tuple[Served, ...]


@dataclass(frozen=True)
class Spread:
    """A number that was measured once a round: median, smallest and largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}–{self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and range of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of values[i] / base[i], round by round."""
    return spread([value / other for value, other in zip(values, base, strict=True)])


def bench(
    environment: TritonEnvironment,
    url: str,
    model: str,
    predictors: Sequence[Predictor],
    clips: Frames,
    concurrencies: Sequence[int],
    *,
    rounds: int = 3,
    requests: int | None = None,
) -> BenchResult:
    """Measures everything in turn, ``rounds`` times.

    Args:
        environment: where perf_analyzer is.
        url: of the server, ``grpc://…`` or ``http://…``.
        model: the ensemble's name.
        predictors: contestants in this process; the first one sets the number of requests in a window.
        clips: what is asked, uint8 [N, 16, S, S, 3].
        concurrencies: requests in flight.
        rounds: at least 1.
        requests: that perf_analyzer counts in each measurement; by default about 3 seconds' worth, 8 to 500,
            and at least 4 for each request in flight.

    Raises:
        DferDeployError: the server or perf_analyzer fails.
    """
    for predictor in predictors:
        predictor.predict(clips[:1])
    local: dict[str, list[list[float]]] = {predictor.name: [] for predictor in predictors}
    loads: dict[int, list[LoadResult]] = {concurrency: [] for concurrency in concurrencies}
    with progress_bar() as bar:
        task = bar.add_task("bench", total=rounds * (len(predictors) + len(concurrencies)))
        for _ in range(rounds):
            for predictor in predictors:
                bar.update(task, description=predictor.name)
                local[predictor.name].append(_latencies_s(lambda clip, p=predictor: p.predict(clip), clips))  # type: ignore[misc]
                bar.advance(task)
            if requests is None:
                per_second = 1 / statistics.median(local[predictors[0].name][0])
                requests = min(500, max(8, round(_SECONDS_PER_MEASUREMENT * per_second)))
            for concurrency in concurrencies:
                bar.update(task, description=f"served, {concurrency} in flight")
                count = max(requests, 4 * concurrency)
                (result,) = measure_load(environment, url, model, clips, [concurrency], requests=count)
                loads[concurrency].append(result)
                bar.advance(task)
    return BenchResult(
        machine=machine(),
        requests=requests or 0,
        in_process=tuple(
            InProcess(
                name,
                tuple(len(times) / sum(times) for times in rounds_of),
                tuple(1000 * seconds for times in rounds_of for seconds in times),
            )
            for name, rounds_of in local.items()
        ),
        served=tuple(
            Served(f"{model} served, {concurrency} in flight", concurrency, tuple(results))
            for concurrency, results in loads.items()
        ),
    )


def machine() -> str:
    """The processor's name, the cores that this process may use, and the system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"


def _latencies_s(predict: Callable[[Frames], object], clips: Frames) -> list[float]:
    """Seconds of single clips, one after the other, for about three."""
    times: list[float] = []
    end = time.perf_counter() + _SECONDS_PER_MEASUREMENT
    while len(times) < _MIN_CLIPS or time.perf_counter() < end:
        clip = clips[len(times) % len(clips)][np.newaxis]
        start = time.perf_counter()
        predict(clip)
        times.append(time.perf_counter() - start)
    return times
