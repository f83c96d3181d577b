"""Serve a bundle with one configuration after the other, and measure each under load."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from rich.progress import Progress, TaskID

from dfer_deploy.bundles.bundle import ServingOptions
from dfer_deploy.errors import DferDeployError
from dfer_deploy.runtimes.predictor import Frames
from dfer_deploy.specs import Contract
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.perf_analyzer import LoadResult, measure_load
from dfer_deploy.triton.statistics import executed_batches

_SECONDS_PER_MEASUREMENT = 2.0
"""Duration for which the number of requests of a measurement is chosen."""

_MAX_REQUESTS = 20_000
"""Largest number of requests in one measurement, so that a very fast model does not make it too long."""

Serve = Callable[[ServingOptions], AbstractContextManager[str]]
"""Serves the bundle with other options until the context ends; yields the server's gRPC address."""


@dataclass(frozen=True)
class Load:
    """The measurements of one configuration with one number of requests in flight.

    Attributes:
        concurrency: number of requests in flight.
        rounds: perf_analyzer's result of each round.
        batches: number of executions of all rounds, by model and batch.
    """

    concurrency: int
    rounds: tuple[LoadResult, ...]
    batches: dict[str, dict[int, int]]

    @property
    def throughput(self) -> tuple[float, ...]:
        """Clips a second, one value for each round."""
        return tuple(result.throughput for result in self.rounds)

    @property
    def p99_ms(self) -> float:
        """The median over the rounds of the 99th percentile of the latency, in milliseconds."""
        return float(statistics.median(result.p99_ms for result in self.rounds))


@dataclass(frozen=True)
class Candidate:
    """A configuration that was tried.

    Attributes:
        serving: the configuration.
        loads: one for each concurrency; empty if the bundle could not be served.
        failure: why it could not be served, or None.
    """

    serving: ServingOptions
    loads: tuple[Load, ...]
    failure: str | None = None


@dataclass
class Trials:
    """Measures candidates. Those of one call take turns, round by round, so that a drift of the machine affects all.

    Every candidate gets a new server in every round, because options are read when a server starts.

    Attributes:
        serve: function that starts a server.
        environment: environment that contains perf_analyzer.
        contract: contract with the models' names.
        clips: clips to send, uint8 [N, 16, S, S, 3].
        concurrencies: numbers of requests in flight, ascending.
        rounds: number of rounds, at least 1.
        requests: number of requests in each measurement, by concurrency; ``calibrate`` chooses them.
        bar: progress bar.
        task: task of the bar. Its total is a guess that ``measure`` corrects.
    """

    serve: Serve
    environment: TritonEnvironment
    contract: Contract
    clips: Frames
    concurrencies: tuple[int, ...]
    rounds: int
    bar: Progress
    task: TaskID
    requests: dict[int, int] = field(default_factory=dict)

    def calibrate(self, serving: ServingOptions, requests: int | None) -> None:
        """Choose the number of requests, and check that the bundle can be served.

        Args:
            serving: the configuration with which they are chosen.
            requests: the number; None for about 2 seconds' worth, at least 8, and 4 for each request in flight.

        Raises:
            DferDeployError: the bundle cannot be served or does not answer.
        """
        with self.serve(serving) as url:
            for concurrency in self.concurrencies:
                self.bar.update(self.task, description=f"how fast is it? {concurrency} in flight")
                few = max(8, 4 * concurrency)
                wanted = requests or round(_SECONDS_PER_MEASUREMENT * self._load(url, concurrency, few).throughput)
                self.requests[concurrency] = min(_MAX_REQUESTS, max(few, wanted))

    def measure(self, what: str, options: Sequence[ServingOptions]) -> tuple[Candidate, ...]:
        """Measure configurations in turn. One that cannot be served is recorded with the reason and then omitted."""
        results: dict[tuple[ServingOptions, int], list[LoadResult]] = {}
        batches: dict[tuple[ServingOptions, int], dict[str, Counter[int]]] = {}
        failures: dict[ServingOptions, str] = {}
        task = self.bar.tasks[self.bar.task_ids.index(self.task)]
        steps = int(task.completed) + self.rounds * len(options) * len(self.concurrencies)
        self.bar.update(self.task, total=max(steps, int(task.total or 0)))
        for round_ in range(self.rounds):
            # The order is reversed every other round, so that no configuration is always the first.
            for serving in options if round_ % 2 == 0 else reversed(options):
                if serving in failures:
                    continue
                try:
                    with self.serve(serving) as url:
                        if self.concurrencies[-1] > 1:
                            # The server's own warm-up uses single clips only, and a first batch allocates memory.
                            self.bar.update(self.task, description=f"{what}: warm up")
                            self._load(url, self.concurrencies[-1], max(8, self.concurrencies[-1]))
                        for concurrency in self.concurrencies:
                            self.bar.update(self.task, description=f"{what}: {concurrency} in flight")
                            before = self._batches(url)
                            result = self._load(url, concurrency, self.requests[concurrency])
                            results.setdefault((serving, concurrency), []).append(result)
                            counts = batches.setdefault((serving, concurrency), {model: Counter() for model in before})
                            for model, after in self._batches(url).items():
                                counts[model] += after - before[model]
                            self.bar.advance(self.task)
                except DferDeployError as error:
                    failures[serving] = str(error)
        return tuple(
            Candidate(serving, (), failures[serving])
            if serving in failures
            else Candidate(
                serving,
                tuple(
                    Load(
                        concurrency,
                        tuple(results[serving, concurrency]),
                        {
                            model: dict(sorted(counts.items()))
                            for model, counts in batches[serving, concurrency].items()
                        },
                    )
                    for concurrency in self.concurrencies
                ),
            )
            for serving in options
        )

    def _load(self, url: str, concurrency: int, requests: int) -> LoadResult:
        (result,) = measure_load(
            self.environment, url, self.contract.ensemble.name, self.clips, [concurrency], requests=requests
        )
        return result

    def _batches(self, url: str) -> dict[str, Counter[int]]:
        models = (self.contract.image_encoder.name, self.contract.temporal_head.name)
        return {model: executed_batches(url, model) for model in models}
