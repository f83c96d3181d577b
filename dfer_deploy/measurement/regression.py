"""Decide whether a measurement of ``bench`` is slower than an older one by more than the noise of both.

The rule: the noise of a contestant is the range of its throughput over the rounds, (largest - smallest) / median, added
up over the old and the new run. A quantity has *fallen* if the median of the new run is below the old one's by more
than that noise. The first contestant runs in this process and has regressed if its throughput has fallen. Each of the
others has regressed if its throughput has fallen **and** the ratio to the first contestant, taken round by round, has
fallen too. A slower machine changes no ratio, and a faster first contestant changes no throughput.

A noise above ``MAX_NOISE`` can hide a fall of that size. A contestant that has not regressed is therefore *undecided*
if the noise of all quantities that show it is larger. It is also undecided if it lost more than ``MAX_NOISE`` while the
first contestant has not regressed, because two noises together hide more than each alone. A contestant that only the
old run measured is undecided too.

If nothing changed and the rounds scatter normally, a fall is reported in 0.7 % of the comparisons of three rounds and
in 0.05 % of those of four (simulated). Noise that occurs only between runs is not visible in the rounds. Both runs must
therefore come from one machine. If others use the machine too, measure twice before believing the first contestant.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from dfer_deploy.errors import DferDeployError, ResultError, spelled
from dfer_deploy.files import read_json
from dfer_deploy.measurement.bench_result import BenchResult, Change, ContestantChange, Regression, Subject

MIN_ROUNDS = 3
"""Smallest number of rounds. With fewer, the range says nothing about the noise."""


def compare(old: BenchResult, new: BenchResult) -> Regression:
    """Compare a new run with an old one, contestant by contestant.

    Raises:
        DferDeployError: the runs cannot be compared; see ``check_comparable`` and ``check_first``.
    """
    rounds, older = new.throughputs, old.throughputs
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
    """Refuse runs that cannot be compared, before minutes are spent on measuring.

    Args:
        old: the older run.
        machine: machine of the new run, from ``bench.machine``.
        rounds: number of rounds of the new run.

    Raises:
        DferDeployError: the machines differ, or one of the runs has fewer rounds than ``MIN_ROUNDS``.
    """
    if old.machine != machine:
        raise ResultError(
            f"the older run was measured on {old.machine!r}, this machine is {machine!r}; compare runs of one machine"
        )
    for what, count in (("the older run", len(old.in_process[0].throughput)), ("this run", rounds)):
        if count < MIN_ROUNDS:
            raise ResultError(
                f"{what} has {count} round(s), expected at least {MIN_ROUNDS}: the rounds are what tells the noise; "
                f"measure with {spelled('rounds', MIN_ROUNDS)} or more"
            )


def check_first(old: BenchResult, first: str) -> None:
    """Refuse an older run without the new run's first contestant, before minutes are spent on measuring.

    Raises:
        DferDeployError: the older run did not measure this contestant.
    """
    older = old.throughputs
    if first not in older:
        raise ResultError(
            f"the older run did not measure {first!r}, which is the measure of everything else; it has "
            f"{', '.join(older)}: measure the same runtimes, or compare with a new run"
        )


def read_bench(path: Path) -> BenchResult:
    """Read a result that ``bench --json`` wrote.

    Raises:
        DferDeployError: the file is not such a result, or its numbers are out of range.
    """
    values = read_json(path, "bench")
    try:
        return BenchResult.from_dict(values)
    except DferDeployError as error:
        raise ResultError(f"{path} is not a result of this version's bench ({error}); measure it again") from error


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
