"""Measure how fast a served model answers, compared with the same graphs and the same checkpoint in this process.

The contestants alternate within one run, round by round, and are compared by ratios within a round, because absolute
times say little on a machine that others use too.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfer_deploy.console import progress_bar
from dfer_deploy.machine.cgroups import usable_cores
from dfer_deploy.measurement.bench_result import InProcess, Served, counted
from dfer_deploy.runtimes.predictor import Frames, Predictor
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.perf_analyzer import LoadResult, measure_load

MIN_REQUESTS = 8
"""Smallest number of requests in one measurement, however slow the model is."""

_SECONDS_PER_MEASUREMENT = 3.0
"""Duration for which the number of requests of a measurement is chosen."""

_MIN_CLIPS = 3
"""Smallest number of clips that are timed one after the other in this process, however slow the model is."""


@dataclass(frozen=True)
class LoadTarget:
    """A server to put under load.

    Attributes:
        environment: environment that contains perf_analyzer.
        url: address of the server, ``grpc://…`` or ``http://…``.
        model: name of the ensemble.
    """

    environment: TritonEnvironment
    url: str
    model: str


@dataclass(frozen=True)
class Measurements:
    """The measured values; see the attributes of the same names of ``BenchResult``."""

    requests: int
    in_process: tuple[InProcess, ...]
    served: tuple[Served, ...]


def measure(
    server: LoadTarget | None,
    predictors: Sequence[Predictor],
    clips: Frames,
    concurrencies: Sequence[int],
    *,
    rounds: int = 3,
    requests: int | None = None,
    min_requests: int = MIN_REQUESTS,
) -> Measurements:
    """Measure all contestants in turn, ``rounds`` times.

    Args:
        server: the server to put under load; None to measure only the predictors.
        predictors: contestants in this process, at least one. The first one sets the number of requests in a window.
        clips: clips to send, uint8 [N, 16, S, S, 3].
        concurrencies: numbers of requests in flight.
        rounds: number of rounds, at least 1.
        requests: number of requests that perf_analyzer counts in each measurement, at least 4 for each request in
            flight; None for about 3 seconds' worth, at most 500.
        min_requests: smallest number of requests in each measurement if ``requests`` is None; at most 500.

    Raises:
        DferDeployError: the server or perf_analyzer fails.
    """
    for predictor in predictors:
        predictor.predict(clips[:1])
    local: dict[str, list[list[float]]] = {predictor.name: [] for predictor in predictors}
    loads: dict[int, list[LoadResult]] = {concurrency: [] for concurrency in (concurrencies if server else ())}
    with progress_bar() as bar:
        task = bar.add_task("bench", total=rounds * (len(predictors) + len(loads)))
        for _ in range(rounds):
            for predictor in predictors:
                bar.update(task, description=predictor.name)
                local[predictor.name].append(_latencies_s(lambda clip, p=predictor: p.predict(clip), clips))  # type: ignore[misc]
                bar.advance(task)
            if requests is None:
                per_second = 1 / statistics.median(local[predictors[0].name][0])
                requests = min(500, max(min_requests, round(_SECONDS_PER_MEASUREMENT * per_second)))
            for concurrency, results in loads.items():
                assert server is not None  # noqa: S101 - else there are no loads, for mypy
                bar.update(task, description=f"served, {concurrency} in flight")
                count = counted(requests, concurrency)
                results += measure_load(
                    server.environment, server.url, server.model, clips, [concurrency], requests=count
                )
                bar.advance(task)
    return Measurements(
        requests=requests or 0,
        in_process=tuple(_in_process(name, latencies_s) for name, latencies_s in local.items()),
        served=tuple(
            Served(f"{server.model if server else ''} served, {concurrency} in flight", concurrency, tuple(results))
            for concurrency, results in loads.items()
        ),
    )


def _in_process(name: str, latencies_s: Sequence[Sequence[float]]) -> InProcess:
    """Return the measurements of one predictor from its latencies in seconds, by round."""
    return InProcess(
        name,
        tuple(len(times) / sum(times) for times in latencies_s),
        tuple(1000 * seconds for times in latencies_s for seconds in times),
    )


def machine() -> str:
    """Return a description of processor, usable cores, NVIDIA's GPUs, and the operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    # NVIDIA's driver documentation, "Using the /proc File System Interface to the Driver".
    models = [
        line.partition(":")[2].strip()
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model:")
    ]
    cores = f"{usable_cores()} cores"
    return ", ".join([name, cores, *models, f"{platform.system()} {platform.release()}"])


def _latencies_s(predict: Callable[[Frames], object], clips: Frames) -> list[float]:
    """Time single clips for about three seconds; return latencies in seconds."""
    times: list[float] = []
    end = time.perf_counter() + _SECONDS_PER_MEASUREMENT
    while len(times) < _MIN_CLIPS or time.perf_counter() < end:
        clip = clips[len(times) % len(clips)][np.newaxis]
        start = time.perf_counter()
        predict(clip)
        times.append(time.perf_counter() - start)
    return times
