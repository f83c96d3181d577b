"""Whether a measurement of ``bench`` is slower than an older one by more than both of them wavered.

The rule. The noise of a contestant is what its rounds differed, (largest - smallest) / median of the throughput, added
up over the old and the new run. A quantity has *fallen* if the median of the new run is below the old one's by more
than that noise. The first contestant runs in this process and has regressed if its throughput has fallen. Each of the
others has regressed if its throughput has fallen **and** the ratio to the first contestant, taken round by round, has
fallen too: what slows the whole machine down moves no ratio, and a faster first contestant moves no throughput.

A noise above ``MOST_NOISE`` hides a fall of as much, so a contestant that has not regressed is *undecided* if no
quantity that shows it is quieter, and also if it lost more than that while the first contestant has not regressed: two
noises together hide more than each. What only the old run measured is undecided too.

Where nothing changed and the rounds scatter normally, a fall is reported in 0.7 % of the comparisons of three rounds
and in 0.05 % of those of four (simulated). Noise that only shows between runs is not in the rounds: so both must come
from one machine, and whoever shares it with others should measure twice before believing the first contestant.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dfer_deploy.errors import DferDeployError
from dfer_deploy.measurement.bench import BenchResult, Subject
from dfer_deploy.plain_data import spec_from_dict

MIN_ROUNDS = 3
"""Of fewer, the range says nothing about the noise."""

MOST_NOISE = 0.25
"""A contestant may lose so much unnoticed, and no more."""

_MAX_BYTES = 64 << 20


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
        return not self.has_fallen and self.noise <= MOST_NOISE

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
                + f"; at most {MOST_NOISE:.0%} of loss and noise are accepted: measure both runs on a quieter machine"
                for one in self.contestants
                if one.is_undecided
                or (one.throughput.ratio < 1 - MOST_NOISE and not one.has_regressed and not first.has_regressed)
            ),
        )


def compare(old: BenchResult, new: BenchResult) -> Regression:
    """Holds a new run against an old one, contestant by contestant.

    Raises:
        DferDeployError: the runs cannot be compared; see ``check_comparable`` and ``check_first``.
    """
    rounds, older = _throughputs(new), _throughputs(old)
    first = next(iter(rounds))
    check_comparable(old, machine=new.machine, rounds=len(rounds[first]))
    check_first(old, first)
    changes = []
    for name in rounds:
        if name in older:
            against_first = (
                _change(_ratios(older[name], older[first]), _ratios(rounds[name], rounds[first]))
                if name != first
                else None
            )
            changes.append(ContestantChange(name, _change(older[name], rounds[name]), against_first))
    return Regression(
        tuple(changes),
        missing=tuple(name for name in older if name not in rounds),
        added=tuple(name for name in rounds if name not in older),
        subject_changes=_subject_changes(old.subject, new.subject),
    )


def check_comparable(old: BenchResult, *, machine: str, rounds: int) -> None:
    """Refuses what would compare nothing, before minutes are spent on measuring.

    Args:
        old: the older run.
        machine: the one of the new run, of ``bench.machine``.
        rounds: of the new run.

    Raises:
        DferDeployError: another machine, or fewer rounds than ``MIN_ROUNDS`` in one of the runs.
    """
    if old.machine != machine:
        raise DferDeployError(
            f"the older run was measured on {old.machine!r}, this machine is {machine!r}; compare runs of one machine"
        )
    for what, count in (("the older run", len(old.in_process[0].throughput)), ("this run", rounds)):
        if count < MIN_ROUNDS:
            raise DferDeployError(
                f"{what} has {count} round(s), expected at least {MIN_ROUNDS}: the rounds are what tells the noise; "
                f"measure with --rounds {MIN_ROUNDS} or more"
            )


def check_first(old: BenchResult, first: str) -> None:
    """Refuses an older run without the new run's first contestant, before minutes are spent on measuring.

    Raises:
        DferDeployError: it did not measure this one.
    """
    older = _throughputs(old)
    if first not in older:
        raise DferDeployError(
            f"the older run did not measure {first!r}, which is the measure of everything else; it has "
            f"{', '.join(older)}: measure the same runtimes, or keep a new run with --json"
        )


def read_bench(path: Path) -> BenchResult:
    """Reads what ``bench --json`` wrote.

    Raises:
        DferDeployError: it is no such file, or one whose numbers cannot be.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DferDeployError(f"{path} is over {_MAX_BYTES} bytes, which no result of bench is")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise DferDeployError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DferDeployError(f"{path} is not valid JSON ({error}); write one with: bench --json FILE") from error
    names = {field.name for field in dataclasses.fields(BenchResult)}
    if not isinstance(values, dict) or not names & set(values):
        raise DferDeployError(f"{path} is no result of bench; write one with: bench --json FILE")
    try:
        result = spec_from_dict(BenchResult, {name: values[name] for name in names & set(values)})
    except DferDeployError as error:
        raise DferDeployError(f"{path} is no result of this version's bench ({error}); measure it again") from error
    throughputs = _throughputs(result)
    counts = {len(rounds) for rounds in throughputs.values()}
    if not result.in_process or counts == {0} or len(counts) != 1:
        raise DferDeployError(f"{path} has contestants with different numbers of rounds, or none; measure it again")
    if not all(math.isfinite(value) and value > 0 for rounds in throughputs.values() for value in rounds):
        raise DferDeployError(f"{path} has a throughput that is not positive; measure it again")
    return result


def _throughputs(result: BenchResult) -> dict[str, tuple[float, ...]]:
    """Clips a second in every round, by contestant; those in process come first."""
    in_process = {contestant.name: contestant.throughput for contestant in result.in_process}
    return in_process | {contestant.name: contestant.throughput for contestant in result.served}


def _change(old: Sequence[float], new: Sequence[float]) -> Change:
    noise = sum((max(rounds) - min(rounds)) / statistics.median(rounds) for rounds in (old, new))
    return Change(statistics.median(new) / statistics.median(old), noise)


def _subject_changes(old: Subject, new: Subject) -> tuple[str, ...]:
    changes = []
    if old.manifest_sha256 != new.manifest_sha256:
        changes.append(f"another bundle (manifest {new.manifest_sha256[:12]}…, was {old.manifest_sha256[:12]}…)")
    if old.checkpoint_sha256 != new.checkpoint_sha256:
        changes.append(f"another checkpoint ({new.checkpoint_sha256[:12]}…, was {old.checkpoint_sha256[:12]}…)")
    if old.precision != new.precision:
        changes.append(f"another precision ({new.precision}, was {old.precision})")
    return tuple(changes)


def _ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, base, strict=True)]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
