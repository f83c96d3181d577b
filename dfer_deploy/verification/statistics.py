"""Paired statistics of two models on the same labelled clips, and the test whether they are equivalent.

Only clips on which exactly one of the two models is right carry information about a difference. A served model changes
few answers, often none, and a bootstrap of zero changes has zero width. So the bounds come from the exact distribution
of the number of changes. If there are many changes, a bootstrap may widen the bounds; it never narrows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dfer_deploy.specs import require

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

ALPHA = 0.05
"""Probability of a wrong "equivalent" for two models whose true difference equals the margin (two one-sided tests)."""

FEW_CHANGES = 20
"""Number of changed clips (or sources) from which a bootstrap is made too. With fewer it would be too narrow."""

BOOTSTRAP_SAMPLES = 10_000
"""Number of samples of the bootstrap."""

MAX_CLIPS = 10_000_000
"""Largest number of clips that is searched for a decision. Nobody could make a larger test."""

_DRAWN_AT_ONCE = 1_000_000
"""Number of counts that the bootstrap holds in memory at once."""

_RULE_OF_THREE = 10
"""Number of observations from which 3 / n is close to the upper bound for zero events."""

Verdict = Literal["equivalent", "different", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a difference in percentage points: 95 % at each end, 90 % for both."""

    low: float
    high: float
    method: Literal["exact", "exact and bootstrap"]


@dataclass(frozen=True)
class Rate:
    """How often an event happened: ``count`` times out of ``n``, with the exact interval of its probability.

    The interval is two-sided at 95 %. If the event happened never or always, it is one-sided at 95 %: with zero events
    the upper bound is 1 - 0.05^(1/n), a little less than 3 / n. Events of one source do not count as independent.

    Attributes:
        count: number of events.
        n: number of occasions.
        low: lower end of the interval, in [0, 1].
        high: upper end of the interval, in [0, 1].
        sources: number of sources of the occasions; None if all occasions count as independent.
    """

    count: int
    n: int
    low: float
    high: float
    sources: int | None = None

    def __str__(self) -> str:
        of = f"{self.count} of {self.n}" + ("" if self.sources is None else f" from {self.sources} sources")
        if self.count == 0:
            about = f", about 3 / {self.n}" if self.sources is None and self.n >= _RULE_OF_THREE else ""
            return f"{of} (at most {100 * self.high:.3g} %{about})"
        return f"{of} ({100 * self.low:.3g}–{100 * self.high:.3g} %)"


@dataclass(frozen=True)
class Equivalence:
    """The conclusion from paired answers about UAR and WAR.

    Attributes:
        verdict: ``equivalent`` if both intervals lie within the margin, ``different`` if one lies beyond it, else
            ``undecided``, because there are too few clips.
        margin: in percentage points, fixed beforehand.
        clips: number of compared clips.
        groups: number of sources of the clips; None if all clips count as independent.
        lost: number of clips that only the reference answers correctly.
        gained: number of clips that only the candidate answers correctly.
        mcnemar_p: exact p-value of McNemar's test that losing and gaining are equally likely. It treats clips as
            independent, whatever the groups.
        delta_uar, delta_war: candidate minus reference, in percentage points.
        interval_uar, interval_war: confidence intervals of the true differences.
        needed: number of clips that would decide if the rates, the shares of the classes and the groups stayed the
            same; None if it is decided, or if no number would decide.
    """

    verdict: Verdict
    margin: float
    clips: int
    groups: int | None
    lost: int
    gained: int
    mcnemar_p: float
    delta_uar: float
    delta_war: float
    interval_uar: Interval
    interval_war: Interval
    needed: int | None

    def __str__(self) -> str:
        if self.verdict == "equivalent":
            return f"equivalent: UAR and WAR are within ±{self.margin:g} points"
        if self.verdict == "different":
            return f"different: UAR or WAR differ by more than {self.margin:g} points"
        if self.needed is None:
            return f"undecided: at these rates not even {MAX_CLIPS:,} clips tell for ±{self.margin:g} points"
        return f"too few clips to tell: n ≥ {self.needed} needed for ±{self.margin:g} points"


def rate(happened: npt.NDArray[np.bool_], groups: Sequence[str] | None = None) -> Rate:
    """Return the rate of an event, with the interval of its probability.

    The interval is Clopper and Pearson's for independent events. For sources it is that of ``equivalence`` for the WAR.

    Args:
        happened: whether the event happened on each occasion, bool [N], N ≥ 1.
        groups: the source of each occasion; None if all are independent.
    """
    count, n = int(happened.sum()), len(happened)
    weight = np.full(n, 1 / n)
    changes = _changes(weight * happened, weight, _units(n, groups))
    low, high = changes.limits(ALPHA if count in (0, n) else ALPHA / 2)
    return Rate(
        count, n, low if count else 0.0, high if count < n else 1.0, None if groups is None else len(set(groups))
    )


def equivalence(
    labels: Int64,
    reference: Int64,
    candidate: Int64,
    classes: int,
    *,
    margin: float = 0.5,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Equivalence:
    """Decide whether a candidate's UAR and WAR are within ``margin`` of the reference's.

    The true differences are those of clips like these, with the same shares of the classes. A wrong "equivalent" has a
    probability of at most 5 %. The same holds for a wrong "different", for UAR and for WAR each. The difference of a
    score is what is gained minus what is lost, two weighted sums of rare events. Their exact limits are joined by
    squares (Zou and Donner, "Construction of confidence limits about effect measures: a general approach", Statistics
    in Medicine 27, 2008). The limits are Clopper-Pearson's if all units weigh the same, otherwise Fay and Feuer's for
    weighted sums of Poisson counts ("Confidence intervals for directly standardized rates", Statistics in Medicine 16,
    1997). If nothing is gained, the lower end is the exact limit of the loss: with zero flips 1 - 0.05^(1/n) for the
    WAR, and 3 / (C · smallest class) for the UAR.

    Args:
        labels: int64 [N] in [0, C), N ≥ 1.
        reference: predicted classes, int64 [N].
        candidate: predicted classes of the same clips, int64 [N].
        classes: C. The UAR is the mean recall of the classes that have clips.
        margin: in percentage points, above 0.
        groups: the source of each clip (a film, a person). Errors on clips of one source are correlated, so sources
            instead of clips count as independent.
        seed: seed of the bootstrap.

    Raises:
        DferDeployError: the margin is not positive.
    """
    require(margin > 0, f"the margin is {margin} points, expected more than 0")
    lost, gained = (reference == labels) & (candidate != labels), (reference != labels) & (candidate == labels)
    unit = _units(len(labels), groups)
    sizes = np.bincount(labels, minlength=classes)
    # For each clip: how much of the WAR and of the UAR it decides.
    weights = [np.full(len(labels), 1 / len(labels)), 1 / (sizes[labels] * (sizes > 0).sum())]
    changes = [(_changes(weight * lost, weight, unit), _changes(weight * gained, weight, unit)) for weight in weights]
    war, uar = (_exact_interval(*change) for change in changes)
    if len(np.unique(unit[lost | gained])) >= FEW_CHANGES:
        bounds = _bootstrap(gained.astype(np.float64) - lost, weights, labels, unit, seed)
        war, uar = (_wider(exact, *bound) for exact, bound in zip((war, uar), bounds, strict=True))
    delta_war, delta_uar = (100 * (gain.share - loss.share) for loss, gain in changes)
    verdict = _verdict((uar, war), margin)
    return Equivalence(
        verdict=verdict,
        margin=margin,
        clips=len(labels),
        groups=None if groups is None else len(set(groups)),
        lost=int(lost.sum()),
        gained=int(gained.sum()),
        mcnemar_p=_mcnemar_p(int(lost.sum()), int(gained.sum())),
        delta_uar=delta_uar,
        delta_war=delta_war,
        interval_uar=uar,
        interval_war=war,
        needed=_needed(changes, (war, uar), len(labels), margin) if verdict == "undecided" else None,
    )


def _mcnemar_p(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test that as many answers are lost as gained; 1 without changes."""
    return float(_scipy_stats().binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def _units(clips: int, groups: Sequence[str] | None) -> Int64:
    """Return the index of each clip's independent unit, int64 [N]: the clip itself, or its source."""
    return np.arange(clips) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


@dataclass(frozen=True)
class _Changes:
    """What was lost, or gained, of a score: the sum of rare events over independent units (clips or sources).

    Attributes:
        share: sum of what each unit lost, as a share of the whole score, in [0, 1].
        squares: sum of the squares of these shares.
        heaviest: largest share that one unit could lose.
        units: number of units if each weighs the same and lost all or nothing; else None.
    """

    share: float
    squares: float
    heaviest: float
    units: float | None

    def limits(self, alpha: float) -> tuple[float, float]:
        """Return the lower and upper limit of the expected share, each wrong with a probability of ``alpha``."""
        if self.units is not None:
            count = self.share * self.units
            return _lower_share(count, self.units, alpha), _upper_share(count, self.units, alpha)
        low = _poisson_quantile(alpha, self.share, self.squares)
        high = _poisson_quantile(1 - alpha, self.share + self.heaviest, self.squares + self.heaviest**2)
        return low, min(1.0, high)

    def with_more(self, factor: float) -> _Changes:
        """Return the changes at the same rates in ``factor`` times as many units."""
        units = None if self.units is None else self.units * factor
        return _Changes(self.share, self.squares / factor, self.heaviest / factor, units)


def _changes(changed: Float64, weight: Float64, unit: Int64) -> _Changes:
    """Sum by unit what clips lost [N] and what they could lose [N]."""
    of_unit, most = np.bincount(unit, changed), np.bincount(unit, weight)
    whole = np.isclose(of_unit, most) | (of_unit == 0)
    alike = bool(np.allclose(most, most[0]) and whole.all())
    return _Changes(float(of_unit.sum()), float((of_unit**2).sum()), float(most.max()), len(most) if alike else None)


def _lower_share(count: float, n: float, alpha: float) -> float:
    # By Hoeffding, "On the distribution of the number of successes in independent trials" (1956), the binomial's limits
    # also hold for the mean of unequal probabilities.
    return 0.0 if count <= 0 else float(_scipy_stats().beta.ppf(alpha, count, n - count + 1))


def _upper_share(count: float, n: float, alpha: float) -> float:
    return 1.0 if count >= n else float(_scipy_stats().beta.ppf(1 - alpha, count + 1, n - count))


def _poisson_quantile(probability: float, mean: float, variance: float) -> float:
    """Return a quantile of the gamma distribution with this mean and variance: a limit for a sum of Poisson counts."""
    return float(variance / (2 * mean) * _scipy_stats().chi2.ppf(probability, 2 * mean**2 / variance)) if mean else 0.0


def _exact_interval(lost: _Changes, gained: _Changes) -> Interval:
    delta = gained.share - lost.share
    (least_lost, most_lost), (least_gained, most_gained) = lost.limits(ALPHA), gained.limits(ALPHA)
    low = delta - np.hypot(most_lost - lost.share, gained.share - least_gained)
    high = delta + np.hypot(most_gained - gained.share, lost.share - least_lost)
    return Interval(100 * float(low), 100 * float(high), "exact")


def _bootstrap(
    change: Float64, weights: Sequence[Float64], labels: Int64, unit: Int64, seed: int
) -> list[tuple[float, float]]:
    """Return percentile intervals, in points, of the sums of ``change`` weighted by each of ``weights``, all [N].

    Units are resampled within their class, or among all units if sources have clips of several classes. The
    contribution of a unit is linear: how far the changes of its clips are from the mean of their class.
    """
    sizes = np.maximum(np.bincount(labels), 1)
    residual = change - (np.bincount(labels, change) / sizes)[labels]
    influence = np.stack([np.bincount(unit, weight * residual) for weight in weights], axis=1)
    first = np.zeros(len(influence), dtype=np.int64)
    first[unit] = labels
    stratum = first if (first[unit] == labels).all() else np.zeros_like(first)
    rng = np.random.default_rng(seed)
    sums = np.tile([float(weight @ change) for weight in weights], (BOOTSTRAP_SAMPLES, 1))
    for k in np.unique(stratum):
        # Units with the same influence are drawn together. Usually there are three kinds: lost, same and gained.
        values, counts = np.unique(influence[stratum == k].round(15), axis=0, return_counts=True)
        at_once = max(1, _DRAWN_AT_ONCE // len(values))
        for start in range(0, BOOTSTRAP_SAMPLES, at_once):
            part = sums[start : start + at_once]
            part += rng.multinomial(counts.sum(), counts / counts.sum(), len(part)) @ values
    low, high = np.quantile(100 * sums, (ALPHA, 1 - ALPHA), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _wider(exact: Interval, low: float, high: float) -> Interval:
    return Interval(min(exact.low, low), max(exact.high, high), "exact and bootstrap")


def _verdict(intervals: Sequence[Interval], margin: float) -> Verdict:
    if all(-margin < interval.low and interval.high < margin for interval in intervals):
        return "equivalent"
    beyond = any(interval.high < -margin or interval.low > margin for interval in intervals)
    return "different" if beyond else "undecided"


def _needed(
    changes: Sequence[tuple[_Changes, _Changes]], intervals: Sequence[Interval], clips: int, margin: float
) -> int | None:
    """Return the smallest larger number of clips that decides at the same rates; None if ``MAX_CLIPS`` do not."""
    now = [_exact_interval(lost, gained) for lost, gained in changes]

    def decides(number: int) -> bool:
        factor = number / clips
        more = [_exact_interval(lost.with_more(factor), gained.with_more(factor)) for lost, gained in changes]
        # What the bootstrap adds shrinks like every spread.
        wider = [
            replace(
                exact,
                low=exact.low - (before.low - found.low) / factor**0.5,
                high=exact.high + (found.high - before.high) / factor**0.5,
            )
            for exact, before, found in zip(more, now, intervals, strict=True)
        ]
        return _verdict(wider, margin) != "undecided"

    too_few, enough = clips, MAX_CLIPS
    if not decides(enough):
        return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decides(middle) else (middle, enough)
    return enough


def _scipy_stats() -> Any:
    """Import scipy only where something is computed; reading a result does not need it."""
    from scipy import stats

    return stats
