"""The statistics against closed forms, and against simulations of models whose true difference is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from dfer_deploy.errors import SettingError
from dfer_deploy.verification import statistics as paired
from dfer_deploy.verification.statistics import Equivalence, Rate, equivalence, rate


def answers(
    sizes: list[int], lost: list[int], gained: list[int]
) -> tuple[paired.Int64, paired.Int64, paired.Int64, int]:
    """Labels, reference and candidate with so many clips of each class, and so many lost and gained."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    wrong = (labels + 1) % len(sizes)
    is_lost = place < np.array(lost)[labels]
    is_gained = place >= (np.array(sizes) - gained)[labels]
    return labels, np.where(is_gained, wrong, labels), np.where(is_lost, wrong, labels), len(sizes)


def events(count: int, n: int) -> Rate:
    return rate(np.arange(n) < count)


NONE = [0] * 7


@pytest.mark.parametrize(("clips", "verdict"), [(597, "undecided"), (598, "equivalent")])
def test_without_a_flip_the_war_needs_598_clips_for_half_a_point(clips: int, verdict: str) -> None:
    found = equivalence(*answers([clips], [0], [0]))
    assert found.verdict == verdict
    assert found.interval_war.high == pytest.approx(100 * (1 - 0.05 ** (1 / clips)))
    assert found.needed == (598 if verdict == "undecided" else None)
    assert found.mcnemar_p == 1


def test_without_a_flip_the_rarest_class_bounds_the_uar() -> None:
    sizes = [400, 300, 200, 200, 100, 50, 20]
    found = equivalence(*answers(sizes, NONE, NONE))
    assert found.interval_uar.high == pytest.approx(100 * -np.log(0.05) / (7 * 20))
    assert found.interval_uar.low == -found.interval_uar.high
    assert found.interval_war.high < 0.5 < found.interval_uar.high
    assert found.verdict == "undecided"
    assert found.needed is not None
    times = found.needed / sum(sizes)
    more = [round(times * size) for size in sizes]
    assert equivalence(*answers(more, NONE, NONE)).verdict == "equivalent"
    fewer = [round(0.97 * size) for size in more]
    assert equivalence(*answers(fewer, NONE, NONE)).verdict == "undecided"


def test_twelve_clips_without_a_flip_prove_nothing() -> None:
    found = equivalence(*answers([4, 4, 4], [0] * 3, [0] * 3))
    assert found.verdict == "undecided"
    assert str(found) == "too few clips to tell: n ≥ 598 needed for ±0.5 points"
    assert found.interval_war.high == pytest.approx(22.1, abs=0.1)
    assert str(events(0, 12)) == "0 of 12 (at most 22.1 %, about 3 / 12)"


def test_a_lost_class_is_different_with_few_clips_and_with_many() -> None:
    few = equivalence(*answers([15] * 7, [15] + [0] * 6, NONE))
    assert (few.verdict, few.interval_uar.method) == ("different", "exact")
    assert few.interval_war.high < -8
    many = equivalence(*answers([90] * 7, [90] + [0] * 6, NONE))
    assert (many.verdict, many.lost, many.gained) == ("different", 90, 0)
    assert many.delta_uar == pytest.approx(-100 / 7)
    assert many.mcnemar_p == pytest.approx(2 * 0.5**90)


def test_the_uar_alone_can_be_different() -> None:
    """A rare class that is lost hardly moves the WAR."""
    found = equivalence(*answers([5000, 5000, 20], [0, 0, 15], [0, 0, 0]))
    assert found.interval_war.low > -0.5
    assert found.verdict == "different"


def test_a_difference_at_the_margin_is_decided_by_no_number() -> None:
    found = equivalence(*answers([100, 100], [1, 0], [0, 0]))
    assert (found.verdict, found.needed) == ("undecided", None)
    assert str(found) == "undecided: at these rates not even 10,000,000 clips tell for ±0.5 points"


def test_mcnemar_and_rates_are_the_exact_ones() -> None:
    found = equivalence(*answers([100] * 3, [4, 4, 0], [1, 0, 0]))
    assert (found.lost, found.gained) == (8, 1)
    assert found.mcnemar_p == pytest.approx(stats.binomtest(8, 9).pvalue)
    assert found.mcnemar_p == pytest.approx(2 * 10 / 512)
    exact = stats.binomtest(9, 300).proportion_ci(0.95, "exact")
    assert (events(9, 300).low, events(9, 300).high) == pytest.approx((exact.low, exact.high))
    assert events(0, 300).high == pytest.approx(1 - 0.05 ** (1 / 300))
    assert events(0, 300).high < 3 / 300
    assert (events(5, 5).low, events(5, 5).high) == (pytest.approx(0.05 ** (1 / 5)), 1)
    assert str(events(630, 630)) == "630 of 630 (99.5–100 %)"
    assert str(events(0, 1)) == "0 of 1 (at most 95 %)"


def test_the_rate_of_events_from_few_sources_is_known_as_badly_as_of_so_few_events() -> None:
    films = [f"film {index // 30}" for index in range(2100)]
    none = rate(np.zeros(2100, dtype=bool), films)
    assert none.high == pytest.approx(1 - 0.05 ** (1 / 70))
    assert str(none) == "0 of 2100 from 70 sources (at most 4.19 %)"
    two = rate(np.arange(2100) < 60, films)
    exact = stats.binomtest(2, 70).proportion_ci(0.95, "exact")
    assert (two.count, two.sources) == (60, 70)
    assert (two.low, two.high) == pytest.approx((exact.low, exact.high))
    of_one_film_a_part = rate(np.arange(2100) < 15, films)
    assert of_one_film_a_part.low < 15 / 2100 < 2 * exact.high
    assert of_one_film_a_part.high > events(15, 2100).high
    assert str(rate(np.zeros(10, dtype=bool), list("aaaabbbbbb"))) == "0 of 10 from 2 sources (at most 100 %)"


def test_groups_count_instead_of_clips() -> None:
    data = answers([300] * 7, NONE, NONE)
    films = [f"film {index // 30}" for index in range(2100)]
    alone, grouped = equivalence(*data), equivalence(*data, groups=films)
    assert (alone.verdict, grouped.verdict) == ("equivalent", "undecided")
    assert (alone.groups, grouped.groups) == (None, 70)
    assert grouped.interval_war.high == pytest.approx(100 * (1 - 0.05 ** (1 / 70)))
    assert grouped.needed == pytest.approx(598 * 30, abs=30)
    one_each = equivalence(*answers([300] * 7, [1, 2] + [0] * 5, NONE), groups=[str(index) for index in range(2100)])
    clips = equivalence(*answers([300] * 7, [1, 2] + [0] * 5, NONE))
    assert one_each.interval_uar == clips.interval_uar


def test_many_changed_sources_are_bootstrapped_and_many_clips_of_few_sources_are_not() -> None:
    films = [str(index // 10) for index in range(4000)]
    labels = np.tile(np.arange(4), 1000)
    for changed, method in ((19, "exact"), (20, "exact and bootstrap")):
        candidate = np.where(np.arange(4000) // 10 < changed, (labels + 1) % 4, labels)
        assert equivalence(labels, labels, candidate, 4, groups=films).interval_war.method == method


def test_many_changes_are_bootstrapped_reproducibly_and_only_widen() -> None:
    data = answers([1000] * 7, [40] * 7, [40] * 7)
    found = equivalence(*data, seed=1)
    assert found == equivalence(*data, seed=1)
    assert found.interval_war.method == "exact and bootstrap"
    normal = 1.645 * 100 * np.sqrt(560) / 7000
    assert -1.2 * normal < found.interval_war.low <= -0.98 * normal
    exact = equivalence(*answers([1000] * 7, [1] * 7, [1] * 7))
    assert exact.interval_war.method == "exact"


def test_the_bootstrap_knows_that_clips_of_one_film_change_together() -> None:
    lost = (np.arange(4000) // 10) % 20 == 0
    labels = np.tile(np.arange(4), 1000)
    candidate = np.where(lost, (labels + 1) % 4, labels)
    films = [str(index // 10) for index in range(4000)]
    weights = [np.full(4000, 1 / 4000)]
    change = -lost.astype(np.float64)
    (alone,) = paired._bootstrap(change, weights, labels, np.arange(4000), 0)
    (together,) = paired._bootstrap(change, weights, labels, np.unique(films, return_inverse=True)[1], 0)
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(np.sqrt(10), rel=0.15)
    assert equivalence(labels, labels, candidate, 4, groups=films).verdict == "different"


def test_films_with_clips_of_several_classes_are_drawn_among_all() -> None:
    """As if by class, films that end alike would have no spread, though half of all films are lost."""
    labels = np.array([0, 1, 1, 0] * 50)
    unit = np.arange(200) // 2
    change = -(unit % 2).astype(np.float64)
    ((low, high),) = paired._bootstrap(change, [np.full(200, 1 / 200)], labels, unit, 0)
    assert high - low == pytest.approx(2 * 1.645 * 100 * np.sqrt(0.25 / 100), rel=0.1)


def test_what_a_class_loses_as_a_whole_is_lost_in_every_draw() -> None:
    """Also where one film has clips of both classes, so that films are drawn among all."""
    labels = np.repeat([0, 1], 100)
    unit = np.arange(200)
    unit[100] = 99
    change = -(labels == 0).astype(np.float64)
    ((low, high),) = paired._bootstrap(change, [np.full(200, 1 / 200)], labels, unit, 0)
    assert (low, high) == pytest.approx((-50, -50))


def test_samples_that_are_drawn_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros(50, dtype=np.int64)
    arguments = (-(np.arange(50) < 20).astype(np.float64), [np.full(50, 1 / 50)], labels, np.arange(50), 0)
    whole = paired._bootstrap(*arguments)
    monkeypatch.setattr(paired, "_DRAWN_AT_ONCE", 2000)
    assert paired._bootstrap(*arguments) == whole


def test_losses_and_gains_are_joined_by_squares() -> None:
    found = equivalence(*answers([500, 500], [5, 1], [2, 2]))
    (least_lost, most_lost), (least_gained, most_gained) = (
        (stats.beta.ppf(0.05, k, 1001 - k), stats.beta.ppf(0.95, k + 1, 1000 - k)) for k in (6, 4)
    )
    assert found.interval_war.low == pytest.approx(100 * (-0.002 - np.hypot(most_lost - 0.006, 0.004 - least_gained)))
    assert found.interval_war.high == pytest.approx(100 * (-0.002 + np.hypot(most_gained - 0.004, 0.006 - least_lost)))


def test_a_class_without_clips_does_not_thin_the_uar() -> None:
    found = equivalence(*answers([100, 50, 0], [2, 0, 0], NONE[:3]))
    assert found.delta_uar == pytest.approx(-100 * 2 / 100 / 2)
    assert found.delta_war == pytest.approx(-100 * 2 / 150)
    assert found.interval_uar == equivalence(*answers([100, 50], [2, 0], NONE[:2])).interval_uar


def gamma(probability: float, mean: float, variance: float) -> float:
    """Fay and Feuer's limit of a weighted sum of Poisson counts."""
    return float(stats.gamma.ppf(probability, mean**2 / variance, scale=variance / mean))


def test_films_that_lose_only_a_part_are_weighted_sums() -> None:
    """Of a hundred films of ten clips one loses half and one loses all: three halves are no count of a binomial."""
    films = [str(index // 10) for index in range(1000)]
    candidate = np.zeros(1000, dtype=np.int64)
    candidate[:15] = 1
    labels = np.zeros(1000, dtype=np.int64)
    found = equivalence(labels, labels, candidate, 1, groups=films)
    half, whole = 0.005, 0.01
    squares = half**2 + whole**2
    least, most = gamma(0.05, half + whole, squares), gamma(0.95, half + 2 * whole, squares + whole**2)
    nothing_gained = 1 - 0.05 ** (1 / 100)
    assert found.interval_war.low == pytest.approx(-100 * most)
    assert found.interval_war.high == pytest.approx(100 * (-0.015 + np.hypot(nothing_gained, 0.015 - least)))


def test_few_clips_bound_nothing_and_no_interval_is_wider_than_the_scale() -> None:
    found = equivalence(*answers([1, 2], [0, 0], [0, 0]))
    assert (found.interval_uar.low, found.interval_uar.high) == (-100, 100)
    all_lost = equivalence(*answers([1, 1], [1, 1], [0, 0]))
    assert (all_lost.interval_uar.low, all_lost.delta_uar) == (-100, -100)


def test_the_number_of_clips_that_is_needed_decides_at_the_same_rates() -> None:
    sizes, lost, gained = [200, 50], [0, 1], [1, 0]
    needed = equivalence(*answers(sizes, lost, gained), margin=2).needed
    verdicts = {
        times: equivalence(*(answers(*([times * n for n in part] for part in (sizes, lost, gained)))), margin=2).verdict
        for times in range(2, 19)
    }
    first = min(times for times, verdict in verdicts.items() if verdict == "equivalent")
    assert first > 3
    assert needed is not None
    assert 250 * (first - 1) < needed <= 250 * first


def test_the_bootstrap_is_the_binomial_around_what_was_lost() -> None:
    """Of clips of one class, drawn anew with replacement, a binomial number is lost; classes are drawn apart."""
    change = -(np.arange(500) < 60).astype(np.float64)
    zeros = np.zeros(500, dtype=np.int64)
    ((low, high),) = paired._bootstrap(change, [np.full(500, 1 / 500)], zeros, np.arange(500), 0)
    # Within one clip: the ends of ten thousand draws are random themselves.
    assert [-5 * low, -5 * high] == pytest.approx(stats.binom.ppf([0.95, 0.05], 500, 60 / 500), abs=1)
    labels = np.repeat([0, 1], [60, 440])
    ((low, high),) = paired._bootstrap(change, [np.full(500, 1 / 500)], labels, np.arange(500), 0)
    assert (low, high) == pytest.approx((-12, -12)), "a class that is lost as a whole is lost in every draw"


def test_what_the_bootstrap_adds_shrinks_with_the_clips_that_are_needed() -> None:
    """Of half a thousand clips that change either way, the bootstrap is the wider one."""
    found = equivalence(*answers([500, 500], [75, 75], [75, 75]), margin=2.75)
    assert found.interval_war.method == "exact and bootstrap"
    assert found.needed is not None
    farthest = max(abs(end) for of in (found.interval_uar, found.interval_war) for end in (of.low, of.high))
    assert found.needed == pytest.approx(1000 * (farthest / 2.75) ** 2, rel=0.02)
    assert found.needed > 1010


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.49, 0.49, "equivalent"),
        (-0.5, 0.1, "undecided"),
        (-0.1, 0.5, "undecided"),
        (-0.9, -0.5, "undecided"),
        (0.5, 0.9, "undecided"),
        (-0.9, -0.51, "different"),
        (0.51, 0.9, "different"),
    ],
)
def test_an_interval_that_touches_the_margin_decides_nothing(low: float, high: float, verdict: str) -> None:
    narrow = paired.Interval(-0.01, 0.01, "exact")
    for pair in ([paired.Interval(low, high, "exact"), narrow], [narrow, paired.Interval(low, high, "exact")]):
        assert paired._verdict(pair, 0.5) == verdict


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match="margin is 0 points, expected more than 0"):
        equivalence(*answers([5], [0], [0]), margin=0)


@dataclass(frozen=True)
class Simulated:
    """Shares of simulated test sets."""

    equivalent: float
    different: float
    misses: tuple[float, ...]
    """Of the true UAR and WAR beyond the lower and the upper ends."""


def simulate(
    sizes: list[int], loss: list[float], gain: list[float], *, runs: int, film: int = 1, margin: float = 0.5
) -> Simulated:
    """Draws test sets whose clips are lost and gained with these probabilities by class; a film's clips all alike."""
    rng = np.random.default_rng(7)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    wrong = (labels + 1) % len(sizes)
    effect = np.array(gain) - loss
    true_uar, true_war = 100 * effect.mean(), 100 * float(effect[labels].mean())
    found: list[Equivalence] = []
    for _ in range(runs):
        films = rng.permutation(len(labels)) // film
        chance = rng.random(len(labels))[films]
        lost, gained = chance < np.array(loss)[labels], chance > 1 - np.array(gain)[labels]
        reference, candidate = np.where(gained, wrong, labels), np.where(lost, wrong, labels)
        groups = None if film == 1 else films.astype(str).tolist()
        found.append(equivalence(labels, reference, candidate, len(sizes), margin=margin, groups=groups))
    ends = [
        [
            end
            for i, true in ((e.interval_uar, true_uar), (e.interval_war, true_war))
            for end in (true < i.low, true > i.high)
        ]
        for e in found
    ]
    verdicts = [e.verdict for e in found]
    shares = (verdicts.count(v) / runs for v in ("equivalent", "different"))
    return Simulated(*shares, tuple(np.mean(ends, axis=0).tolist()))


CASES = {
    "few flips": (([300] * 7, [0.005] * 7, [0.0] * 7), 1),
    "many flips": (([250] * 7, [0.045] * 7, [0.04] * 7), 1),
    "losses and gains": (([300] * 7, [0.010] * 7, [0.005] * 7), 1),
    "unequal classes": (([2000, 1500, 1200, 1000, 800, 600, 400], [0.005] * 7, [0.0] * 7), 1),
    "a rare class": (([900, 900, 900, 900, 900, 900, 300], [0.0] * 6 + [0.035], [0.0] * 7), 1),
    "films of ten clips": (([1000] * 7, [0.005] * 7, [0.0] * 7), 10),
}
"""All with a true loss of half a point of UAR, the margin."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_true_difference_of_the_margin_is_called_equivalent_in_at_most_one_of_twenty(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "BOOTSTRAP_SAMPLES", 1000)
    monkeypatch.setattr(paired, "_needed", lambda *_: None)
    runs = 600
    (sizes, loss, gain), film = CASES[name]
    found = simulate(sizes, loss, gain, runs=runs, film=film)
    # Three standard errors of the simulation.
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert found.equivalent <= most
    assert max(found.misses) <= most, "each end of an interval misses in at most one of twenty"
    # Of UAR or WAR, at either end.
    assert found.different <= 2 * most


def test_more_clips_decide_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "_needed", lambda *_: None)
    power = [simulate([n] * 7, [0.001] * 7, [0.001] * 7, runs=100).equivalent for n in (60, 120, 240, 480)]
    assert power == sorted(power)
    assert power[0] < 0.1
    assert power[-1] > 0.95
    found = simulate([90] * 7, [0.05] * 7, [0.0] * 7, runs=50)
    assert found.different > 0.95
