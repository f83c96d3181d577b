"""The result of ``bench``: one frozen dataclass, of which tables, JSON, the report and the exit code are views."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfer_deploy.errors import ExitCode
from dfer_deploy.plain_data import json_values, result_from_json
from dfer_deploy.specs import require
from dfer_deploy.triton.perf_analyzer import LoadResult
from dfer_deploy.verification.bounds import check_between, check_name

FORMAT = "dfer-deploy-bench/1"
"""The format of ``BenchResult.to_dict`` and of what ``bench --json`` writes."""

REQUESTS_FOR_P99 = 100
"""The 99th percentile of fewer requests is their maximum."""

MAX_NOISE = 0.25
"""A contestant may lose so much unnoticed, and no more."""

_MAX_CONTESTANTS = 64
_MAX_NUMBER = 1e9
"""Clips a second, or milliseconds."""


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
class Subject:
    """Which bundle was measured.

    Attributes:
        manifest_sha256: of its manifest, which names every file by its own.
        checkpoint_sha256: of what it was exported from.
        precision: of its graphs.
    """

    manifest_sha256: str
    checkpoint_sha256: str
    precision: str


@dataclass(frozen=True)
class Change:
    """One quantity, old against new.

    Attributes:
        ratio: the median of the new run divided by that of the old one.
        noise: the relative ranges over the rounds of both runs, added up.
    """

    ratio: float
    noise: float

    @property
    def has_fallen(self) -> bool:
        """Whether the new run lies below the old one by more than the noise."""
        return self.ratio < 1 - self.noise

    @property
    def has_held(self) -> bool:
        """Whether it shows that the new run is not much slower: it has not fallen, and the noise could not hide it."""
        return not self.has_fallen and self.noise <= MAX_NOISE

    def __str__(self) -> str:
        return f"{self.ratio - 1:+.1%} (noise {self.noise:.1%})"


@dataclass(frozen=True)
class ContestantChange:
    """A contestant of both runs.

    Attributes:
        name: of the contestant.
        throughput: of the clips a second.
        against_first: of the ratio to the first contestant, round by round; None for the first contestant itself.
    """

    name: str
    throughput: Change
    against_first: Change | None

    @property
    def has_regressed(self) -> bool:
        """By the rule of this module."""
        return self.throughput.has_fallen and (self.against_first is None or self.against_first.has_fallen)

    @property
    def is_undecided(self) -> bool:
        """It has not regressed, and the noise is too large to say that it has not."""
        held = self.throughput.has_held or (self.against_first is not None and self.against_first.has_held)
        return not self.has_regressed and not held


@dataclass(frozen=True)
class Regression:
    """Two runs.

    Attributes:
        contestants: of both runs, the first one of the new run first.
        missing: names that only the old run has.
        added: names that only the new run has.
        subject_changes: one sentence for each way in which another bundle was measured.
    """

    contestants: tuple[ContestantChange, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    subject_changes: tuple[str, ...]

    @property
    def regressed(self) -> tuple[str, ...]:
        """The names of those that have regressed."""
        return tuple(contestant.name for contestant in self.contestants if contestant.has_regressed)

    @property
    def undecided(self) -> tuple[str, ...]:
        """One sentence for everything that cannot be told."""
        first = self.contestants[0]
        return (
            *(
                f"{name} of the older run was not measured; measure with the same --concurrency, --runtime, "
                "--checkpoint and name of the bundle"
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
    """All contestants of one run.

    Attributes:
        machine: what the absolute numbers belong to.
        subject: whose graphs were measured.
        requests: how many requests perf_analyzer counted in each measurement, or ``counted`` with many in flight.
        in_process: predictors in this process, at least one; the first is what the others are compared with.
        served: the server, by concurrency.
        size_mb: all files of the bundle in 10^6 bytes; None in results of 0.1 with another layout.
        memory_mb: of the server's processes after the load, in 10^6 bytes; None where it was not measured.
        left_out: reasons by what was not measured.
        comparison: with an older run, where one was given.
        policy_failures: one sentence for each limit of the policy that was left.
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

    def __post_init__(self) -> None:
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
        """The outcome of comparison and policy: what failed counts before what is too noisy to tell."""
        if self.policy_failures or (self.comparison is not None and self.comparison.regressed):
            return ExitCode.GATE_FAILED
        undecided = self.comparison is not None and self.comparison.undecided
        return ExitCode.UNDECIDED if undecided else ExitCode.DONE

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it; ``from_dict`` reads it."""
        values: dict[str, Any] = json_values(self)
        if self.comparison is None:
            del values["comparison"]
        else:
            values["comparison"]["undecided"] = list(self.comparison.undecided)
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchResult:
        """Read what ``to_dict`` gave, or 0.1.0 without a format number; keys that it does not know are ignored.

        Raises:
            DferDeployError: the format is another one, something is missing or has the wrong type, or cannot be.
        """
        found = values.get("format", FORMAT)
        require(found == FORMAT, f"the benchmark has the format {found!r}, expected {FORMAT!r}")
        return result_from_json(cls, values)


@dataclass(frozen=True)
class Spread:
    """A number that was measured once a round: median, smallest and largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        median, low, high = (
            f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in (self.median, self.low, self.high)
        )
        return f"{median} ({low}–{high})"


def spread(values: Sequence[float]) -> Spread:
    """Median and range of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of values[i] / base[i], round by round."""
    return spread([value / other for value, other in zip(values, base, strict=True)])


def counted(requests: int, concurrency: int) -> int:
    """Requests of one measurement, of which at least ``requests`` are wanted: four for each in flight."""
    return max(requests, 4 * concurrency)
