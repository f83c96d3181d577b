"""The result of ``bench``: one frozen dataclass. Tables, JSON, the report and the exit code are made from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfer_deploy.errors import DferDeployError, ExitCode, ResultError, spelled
from dfer_deploy.plain_data import json_values, result_from_json
from dfer_deploy.specs import require
from dfer_deploy.triton.perf_analyzer import LoadResult
from dfer_deploy.verification.bounds import check_between, check_name

FORMAT = "dfer-deploy-bench/1"
"""Format of ``BenchResult.to_dict`` and of the JSON that ``bench --json`` writes."""

REQUESTS_FOR_P99 = 100
"""Smallest number of requests for a 99th percentile. With fewer, it would be the maximum."""

MAX_NOISE = 0.25
"""Largest noise with which a comparison is decided. A loss of this share could remain unnoticed."""

_MAX_CONTESTANTS = 64
"""Largest number of contestants in a result. Results come from files that may come from anywhere."""

_MAX_NUMBER = 1e9
"""Largest value in clips a second or milliseconds. A larger one in a file is an error."""


@dataclass(frozen=True)
class InProcess:
    """A predictor in this process, which answers one clip at a time.

    Attributes:
        name: name of the predictor.
        throughput: clips a second, one value for each round.
        latency_ms: latency of every single clip of all rounds, in milliseconds.
    """

    name: str
    throughput: tuple[float, ...]
    latency_ms: tuple[float, ...]


@dataclass(frozen=True)
class Served:
    """The served ensemble at one concurrency. ``rounds`` contains perf_analyzer's result of each round."""

    name: str
    concurrency: int
    rounds: tuple[LoadResult, ...]

    @property
    def throughput(self) -> tuple[float, ...]:
        return tuple(result.throughput for result in self.rounds)

    def median(self, field: str) -> float:
        """Return the median over the rounds of a field of ``LoadResult``."""
        return float(statistics.median(getattr(result, field) for result in self.rounds))


@dataclass(frozen=True)
class Subject:
    """The identity of the measured bundle.

    Attributes:
        manifest_sha256: SHA-256 of its manifest, which contains the SHA-256 of every other file.
        checkpoint_sha256: SHA-256 of the exported checkpoint.
        precision: precision of its graphs.
    """

    manifest_sha256: str
    checkpoint_sha256: str
    precision: str


@dataclass(frozen=True)
class Change:
    """The change of one quantity from the old run to the new one.

    Attributes:
        ratio: median of the new run divided by the median of the old run.
        noise: sum of the relative ranges over the rounds of both runs.
    """

    ratio: float
    noise: float

    @property
    def has_fallen(self) -> bool:
        """Whether the new run is below the old one by more than the noise."""
        return self.ratio < 1 - self.noise

    @property
    def has_held(self) -> bool:
        """Whether the new run is provably not much slower: it has not fallen, and the noise cannot hide a fall."""
        return not self.has_fallen and self.noise <= MAX_NOISE

    def __str__(self) -> str:
        return f"{self.ratio - 1:+.1%} (noise {self.noise:.1%})"


@dataclass(frozen=True)
class ContestantChange:
    """The change of a contestant that is in both runs.

    Attributes:
        name: name of the contestant.
        throughput: change of the clips a second.
        against_first: change of the ratio to the first contestant, round by round; None for the first contestant
            itself.
    """

    name: str
    throughput: Change
    against_first: Change | None

    @property
    def has_regressed(self) -> bool:
        """Whether it became slower, by the rule in ``measurement.regression``."""
        return self.throughput.has_fallen and (self.against_first is None or self.against_first.has_fallen)

    @property
    def is_undecided(self) -> bool:
        """Whether it has not regressed, but the noise is too large to exclude that."""
        held = self.throughput.has_held or (self.against_first is not None and self.against_first.has_held)
        return not self.has_regressed and not held


@dataclass(frozen=True)
class Regression:
    """The comparison of two runs.

    Attributes:
        contestants: contestants of both runs, the first one of the new run first.
        missing: names that are only in the old run.
        added: names that are only in the new run.
        subject_changes: one sentence for each difference between the measured bundles.
    """

    contestants: tuple[ContestantChange, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    subject_changes: tuple[str, ...]

    @property
    def regressed(self) -> tuple[str, ...]:
        """The names of the contestants that have regressed."""
        return tuple(contestant.name for contestant in self.contestants if contestant.has_regressed)

    @property
    def undecided(self) -> tuple[str, ...]:
        """One sentence for each undecided question."""
        first = self.contestants[0]
        return (
            *(
                f"{name} of the older run was not measured; measure with the same {spelled('concurrencies')}, "
                f"{spelled('runtimes')}, {spelled('checkpoint')} and name of the bundle"
                for name in self.missing
            ),
            *(
                f"{one.name}: too noisy to tell whether it is slower, throughput {one.throughput}"
                + ("" if one.against_first is None else f", ratio to {first.name} {one.against_first}")
                + f"; at most {MAX_NOISE:.0%} of loss and noise are accepted: measure both runs on a quieter machine"
                for one in self.contestants
                if one.is_undecided
                or (one.throughput.ratio < 1 - MAX_NOISE and not one.has_regressed and not first.has_regressed)
            ),
        )


@dataclass(frozen=True)
class BenchResult:
    """The results of all contestants of one run.

    Attributes:
        machine: description of the machine to which the absolute numbers belong.
        subject: the measured bundle.
        requests: number of requests that perf_analyzer counted in each measurement; see ``counted`` for many in flight.
        in_process: predictors in this process, at least one. The others are compared with the first.
        served: results of the server, one for each concurrency.
        size_mb: size of all files of the bundle in 10^6 bytes; None in results of 0.1 with another layout.
        memory_mb: memory of the server's processes after the load in 10^6 bytes; None if it was not measured.
        left_out: for everything that was not measured, its name and the reason.
        comparison: comparison with an older run; None if none was given.
        policy_failures: one sentence for each exceeded limit of the policy.
    """

    machine: str
    subject: Subject
    requests: int
    in_process: tuple[InProcess, ...]
    served: tuple[Served, ...]
    size_mb: float | None = None
    memory_mb: float | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    comparison: Regression | None = None
    policy_failures: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what ``bench`` cannot have measured: results are read from files, which may come from anywhere.

        Raises:
            DferDeployError: a number, a name or a count cannot be.
        """
        measured = {one.name: (*one.throughput, *one.latency_ms) for one in self.in_process}
        for level in self.served:
            times = [time for load in level.rounds for time in (load.p50_ms, load.p95_ms, load.p99_ms)]
            measured[level.name] = (*level.throughput, *times)
        require(
            len(self.in_process) >= 1 and len(measured) <= _MAX_CONTESTANTS,
            f"the benchmark has {len(measured)} contestants, {len(self.in_process)} of them in process; expected 1 to "
            f"{_MAX_CONTESTANTS}",
        )
        counts = {len(rounds) for rounds in self.throughputs.values()}
        require(len(counts) == 1 and 0 not in counts, "the contestants have different numbers of rounds, or none")
        require(all(one.latency_ms for one in self.in_process), "a contestant in process has no latencies")
        for name in (self.machine, *measured):
            check_name(name)
            for value in measured.get(name, ()):
                check_between(f"a number of {name!r}", value, _MAX_NUMBER)
        for name, rounds in self.throughputs.items():
            require(all(value > 0 for value in rounds), f"a throughput of {name!r} is not positive")

    @property
    def throughputs(self) -> dict[str, tuple[float, ...]]:
        """Clips a second in every round, by contestant; those in process come first."""
        in_process = {one.name: one.throughput for one in self.in_process}
        return in_process | {one.name: one.throughput for one in self.served}

    @property
    def exit_code(self) -> ExitCode:
        """The exit code. A failure of the comparison or the policy takes precedence over too much noise."""
        if self.policy_failures or (self.comparison is not None and self.comparison.regressed):
            return ExitCode.GATE_FAILED
        undecided = self.comparison is not None and self.comparison.undecided
        return ExitCode.UNDECIDED if undecided else ExitCode.DONE

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data, which ``from_dict`` reads."""
        values: dict[str, Any] = json_values(self)
        if self.comparison is None:
            del values["comparison"]
        else:
            values["comparison"]["undecided"] = list(self.comparison.undecided)
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchResult:
        """Read a result from the data of ``to_dict``, or of 0.1.0 without a format number. Unknown keys are ignored.

        Raises:
            DferDeployError: the format is not supported, or a value is missing, has the wrong type or is out of range.
        """
        if not isinstance(values, Mapping):
            raise ResultError(f"a benchmark is {str(values)[:80]!r}, expected a table")
        found = values.get("format", FORMAT)
        if found != FORMAT:
            raise ResultError(f"the benchmark has the format {found!r}, expected {FORMAT!r}")
        try:
            result = result_from_json(cls, values)
            result.check()
        except DferDeployError as error:
            raise ResultError(str(error)) from error
        return result


@dataclass(frozen=True)
class Spread:
    """A quantity that was measured once a round: median, smallest and largest value."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        median, low, high = (
            f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in (self.median, self.low, self.high)
        )
        return f"{median} ({low}–{high})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and range of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Return the spread of values[i] / base[i], round by round."""
    return spread([value / other for value, other in zip(values, base, strict=True)])


def counted(requests: int, concurrency: int) -> int:
    """Return the number of requests in a measurement: ``requests``, but at least four for each request in flight."""
    return max(requests, 4 * concurrency)
