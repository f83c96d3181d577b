"""What leaves a limit, and by how little. The numbers of clips are chosen so that percentages are exact."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.verification.compared_answers import ComparedAnswers
from dfer_deploy.verification.comparison import Collected, comparison
from dfer_deploy.verification.limits import LIMITS, Limits, Rounding
from dfer_deploy.verification.verification_result import Comparison

NO_LIMITS = Limits(
    "fp32",
    head_logits=1e6,
    logits=1e6,
    flip_margin=1e6,
    roundings=1e6,
    same_graphs=1e6,
    probabilities=1e6,
    points=100,
)


def compared(
    expected: Float32,
    answered: Float32,
    labels: Any = None,
    limits: Limits = LIMITS["fp32"],
    decided_on: ComparedAnswers | None = None,
    **collected: Any,
) -> Comparison:
    answers = ComparedAnswers(
        class_names=("a", "b", "c")[: expected.shape[1]],
        clips=tuple(f"clip {index}" for index in range(len(expected))),
        clip_hashes=tuple(f"{index:064x}" for index in range(len(expected))),
        groups=None,
        labels=np.arange(len(expected)) % 2 if labels is None else labels,
        reference=expected.argmax(axis=1),
        candidates={"served": answered.argmax(axis=1)},
    )
    found = Collected("served", [answered], **collected)
    return comparison(found, expected, answers, decided_on or answers, limits, Rounding(1.0, 1.0))


def with_hits(sizes: list[int], before: list[int], after: list[int], **limits: float) -> Comparison:
    """So many clips of each class, and how many of them are answered rightly by PyTorch and by the server."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    logits = [
        9
        * np.eye(len(sizes), dtype=np.float32)[np.where(place < np.array(hits)[labels], labels, 1 - labels.clip(0, 1))]
        for hits in (before, after)
    ]
    return compared(*logits, labels, dataclasses.replace(NO_LIMITS, **limits))


EXPECTED = np.tile(np.array([[9, 0], [0, 9]], dtype=np.float32), (10, 1))


def test_errors_are_told_by_quantiles_over_clips_and_classes() -> None:
    answered = EXPECTED.copy()
    answered[3] -= np.float32(0.004)
    found = compared(EXPECTED, answered)
    assert found.failures == ()
    assert found.logit_errors["0.5"] == found.logit_errors["0.9"] == 0
    assert abs(found.logit_errors["1"] - 0.004) < 1e-6
    assert found.undecided == ("served: too few clips to tell: n ≥ 598 needed for ±0.5 points",)


def test_many_sure_changes_are_one_sentence_with_what_became_what() -> None:
    answered = EXPECTED.copy()
    answered[[0, 2, 4]] = answered[[0, 2, 4]][:, ::-1]
    limits = dataclasses.replace(NO_LIMITS, flip_margin=1)
    three = compared(EXPECTED, answered, limits=limits)
    assert three.failures == tuple(
        f"served: clip {number} is answered b, PyTorch says a by 9 logits" for number in (0, 2, 4)
    )
    expected = EXPECTED.copy()
    expected[7] *= 2
    answered[[1, 7]] = answered[[1, 7]][:, ::-1]
    (five,) = compared(expected, answered, limits=limits).failures
    assert five == (
        "served: 5 answers of which PyTorch is sure changed (3 × a → b, 2 × b → a): "
        "clip 7 is answered a, PyTorch says b by 18 logits"
    )


def test_an_answer_that_is_not_finite_fails_and_can_still_be_written() -> None:
    answered = EXPECTED.copy()
    answered[3] = np.nan
    found = compared(EXPECTED, answered)
    assert any("a logit differs by inf" in failure for failure in found.failures)
    assert set(found.logit_errors.values()) == {float("inf")}
    (flip,) = found.flips
    json.dumps([flip.answered_probabilities, found.calibration_error], allow_nan=False)
    assert any("clip 3 is answered a, PyTorch says b by 9 logits" in failure for failure in found.failures)


def test_a_swapped_class_is_different_and_every_flip_is_named() -> None:
    found = compared(EXPECTED, EXPECTED[:, ::-1])
    assert found.equivalence.verdict == "different"
    assert "served: different: UAR or WAR differ by more than 0.5 points" in found.failures
    assert found.undecided == ()
    assert (found.flip_rate.count, len(found.flips)) == (20, 20)


@pytest.mark.parametrize(
    ("field", "what", "limit"),
    [
        ("head_logits", "a logit of the temporal head", 0.01),
        ("same_graphs", "a logit against onnxruntime in process", 1e-3),
        ("probabilities", "a probability against the softmax of its logits", 1e-4),
    ],
)
def test_each_difference_has_a_limit_of_its_own(field: str, what: str, limit: float) -> None:
    assert compared(EXPECTED, EXPECTED, **{field: limit}).failures == ()
    (failure,) = compared(EXPECTED, EXPECTED, **{field: 2 * limit}).failures
    assert failure == f"served: {what} differs by {2 * limit:g}, at most {limit:g} is accepted"


def test_a_logit_of_the_whole_has_a_limit() -> None:
    answered = EXPECTED.copy()
    answered[:, 0] += np.arange(20, dtype=np.float32) / 1000
    (failure,) = compared(EXPECTED, answered).failures
    assert failure == "served: a logit differs by 0.019, at most 0.01 is accepted"


def test_an_answer_may_change_only_where_it_was_a_close_call() -> None:
    expected, answered = EXPECTED.copy(), EXPECTED.copy()
    expected[[2, 4]] = [[5.01, 5], [5.03, 5]]
    answered[[2, 4]] = [[5, 5.01], [5, 5.03]]
    limits = dataclasses.replace(NO_LIMITS, flip_margin=0.02)
    found = compared(expected, answered, np.ones(20, np.int64), limits=limits)
    assert found.failures == ("served: clip 4 is answered b, PyTorch says a by 0.03 logits",)
    flip = found.flips[1]
    assert (flip.clip, flip.label, flip.expected, flip.answered) == ("clip 4", "b", "a", "b")
    assert flip.probabilities[0] > 0.5 > flip.answered_probabilities[0]


@pytest.mark.parametrize(
    ("sizes", "before", "after", "failing"),
    [
        # 2 points of the recall of each class: the UAR stays, the WAR falls by 19 of 1050.
        ([50, 1000], [40, 900], [41, 880], ["WAR differs by 1.81 points"]),
        # The WAR stays, the UAR falls by (2 - 0.1) / 2.
        ([50, 1000], [40, 900], [39, 901], ["UAR differs by 0.95 points"]),
        # Better is different too. A class without clips counts neither for nor against.
        ([100, 100, 0], [80, 80, 0], [81, 81, 0], ["UAR differs by 1 points", "WAR differs by 1 points"]),
    ],
)
def test_uar_and_war_are_held_against_the_margin_on_these_clips(
    sizes: list[int], before: list[int], after: list[int], failing: list[str]
) -> None:
    failures = [failure for failure in with_hits(sizes, before, after, points=0.5).failures if "differs" in failure]
    assert failures == [f"served: {sentence}, at most 0.5 is accepted" for sentence in failing]


@pytest.mark.parametrize(
    ("sizes", "before", "lost", "limit"),
    [
        ([1000, 0], [11, 0], [1, 0], 0.1),
        ([1000, 0], [8, 0], [3, 0], 0.3),
        ([1000, 0], [11, 0], [5, 0], 0.5),
        ([2000, 0], [22, 0], [10, 0], 0.5),
        ([1000] * 3, [990, 980, 970], [2, 2, 2], 0.2),
    ],
)
def test_a_loss_of_exactly_the_limit_is_accepted_and_one_clip_more_is_not(
    sizes: list[int], before: list[int], lost: list[int], limit: float
) -> None:
    """As the difference of two rounded percentages each of these UARs falls by more than the limit."""
    for more, failing in ((0, 0), (1, 3)):
        after = [hits - loss for hits, loss in zip(before, lost, strict=True)]
        after[0] -= more
        found = with_hits(sizes, before, after, points=limit, recall_drop=limit)
        failures = [failure for failure in found.failures if "is accepted" in failure]
        assert len(failures) == failing, failures


def test_the_recall_of_each_class_may_fall_so_far_but_rise_at_will() -> None:
    found = with_hits([10, 10, 0], [10, 5, 0], [7, 9, 0], recall_drop=20)
    assert found.failures == ("served: the recall of a is worse by 30 points, at most 20 is accepted",)


def test_the_calibration_may_become_better_but_not_worse() -> None:
    """Right answers, sure ones (sigmoid(9) = 0.99988) and doubtful ones (sigmoid(1) = 0.731)."""
    doubtful = EXPECTED / 9
    limits = dataclasses.replace(NO_LIMITS, calibration_rise=10)
    assert compared(EXPECTED, doubtful, limits=limits).failures == (
        "served: the calibration is worse by 26.9 points, at most 10 is accepted",
    )
    assert compared(doubtful, EXPECTED, limits=limits).failures == ()


@pytest.mark.parametrize(("clips", "changed", "limit"), [(1500, 27, 0.018), (2000, 10, 0.005), (100, 29, 0.29)])
def test_answers_that_change_at_the_limit_leave_the_question_open_and_one_more_fails(
    clips: int, changed: int, limit: float
) -> None:
    at_limit = with_hits([clips, 0], [clips, 0], [clips - changed, 0], flips=limit)
    assert at_limit.failures == ()
    (sentence,) = at_limit.undecided
    assert f"{changed} of {clips}" in sentence
    assert sentence.endswith(f"answers changed, at most {100 * limit:g} % is accepted: too few clips to tell")
    (failure,) = with_hits([clips, 0], [clips, 0], [clips - changed - 1, 0], flips=limit).failures
    assert failure.endswith(f"% of the answers changed, at most {100 * limit:g} % is accepted")


def test_without_a_change_the_upper_bound_of_the_rate_decides() -> None:
    """Of 20 clips it is 1 - 0.05^(1/20) = 13.9 %."""
    assert with_hits([20, 0], [20, 0], [20, 0], flips=0.14).undecided == ()
    (sentence,) = with_hits([20, 0], [20, 0], [20, 0], flips=0.138).undecided
    assert "at most 13.8 % is accepted" in sentence


def test_equivalence_is_decided_on_the_pooled_clips_and_their_groups() -> None:
    labels = np.arange(1400) % 2
    names = tuple(f"{index:064x}" for index in range(1400))
    pool = ComparedAnswers(("a", "b"), names, names, None, labels, labels, {"served": labels})
    found = compared(EXPECTED, EXPECTED, decided_on=pool)
    assert (found.equivalence.verdict, found.equivalence.clips, found.undecided) == ("equivalent", 1400, ())
    by_film = dataclasses.replace(pool, groups=tuple(f"film {index // 20}" for index in range(1400)))
    found = compared(EXPECTED, EXPECTED, decided_on=by_film)
    assert (found.equivalence.verdict, found.equivalence.groups) == ("undecided", 70)
    assert (found.flip_rate.n, found.flip_rate.sources) == (1400, 70)
    assert len(found.undecided) == 1
    few = dataclasses.replace(NO_LIMITS, flips=0.01)
    assert compared(EXPECTED, EXPECTED, limits=few, decided_on=pool).undecided == ()
    (open_question,) = compared(EXPECTED, EXPECTED, limits=few, decided_on=by_film).undecided
    assert open_question.startswith("served: 0 of 1400 from 70 sources (at most 4.19 %) answers changed, at most 1 %")


class Colours:
    """Frame features are a frame's mean colours, logits their mean over time; each step can be made wrong."""

    name = "colours"

    def __init__(
        self, *, features: float = 0.0, logits: float = 0.0, probabilities: float = 1.0, whole: float = 1.0
    ) -> None:
        self.features, self.logits, self.probabilities, self.whole = features, logits, probabilities, whole

    def encode(self, frames: Frames) -> Float32:
        return frames.mean(axis=(2, 3), dtype=np.float32) + np.float32(self.features)

    def classify(self, frame_features: Float32) -> Prediction:
        logits = frame_features.mean(axis=1) + np.float32(self.logits)
        return Prediction(logits, softmax(logits) * np.float32(self.probabilities))

    def predict(self, frames: Frames) -> Prediction:
        answer = self.classify(self.encode(frames))
        return Prediction(answer.logits, answer.probabilities * np.float32(self.whole))

    def __enter__(self) -> Colours:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("wrong", "encoder_logits", "head_logits", "probabilities"),
    [
        ({}, 0, 0, 0),
        ({"features": 0.5}, 0.5, 0, 0),
        ({"logits": -0.25}, 0, 0.25, 0),
        ({"whole": 0.5}, 0, 0, 0.5),
        ({"probabilities": 0.5, "whole": 2.0}, 0, 0, 0.5),
    ],
)
def test_an_error_is_told_of_the_step_that_makes_it_and_the_largest_of_all_batches_counts(
    wrong: dict[str, float], encoder_logits: float, head_logits: float, probabilities: float
) -> None:
    frames = np.zeros((2, 16, 4, 4, 3), np.uint8)
    # A probability of 1, of which half is missing if the softmax is halved.
    frames[..., 0] = 200
    right, served, found = Colours(), Colours(**wrong), Collected("colours")
    features = right.encode(frames)
    logits = found.ask(served, frames, features, right.classify(features).logits)
    np.testing.assert_array_equal(logits, served.predict(frames).logits)
    found.ask(right, frames, features, right.classify(features).logits)
    assert (found.encoder_logits, found.head_logits) == (encoder_logits, head_logits)
    assert found.probabilities == pytest.approx(probabilities, abs=1e-6)
    assert len(found.logits) == 2


def test_the_worst_clips_of_all_batches_are_kept_in_the_order_of_the_list() -> None:
    """Clip i is filled with i; what is not finite is worst, and of equal errors the earlier clip counts."""
    found, right, served = Collected("colours"), Colours(), Colours()
    errors = np.array([0.125, 0.5, 0.0, np.nan, 0.5, 0.25, 0.5], np.float32)
    for rows in (np.arange(0, 3), np.arange(3, 7)):
        frames = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None, None], (len(rows), 16, 4, 4, 3)).copy()
        features = right.encode(frames)
        found.ask(served, frames, features, right.classify(features).logits + errors[rows, None])
    assert [int(clip[0, 0, 0, 0]) for clip in found.worst_clips] == [1, 3, 4]


def test_errors_beyond_what_rounding_explains_fail() -> None:
    """1 is what rounding costs; 30 times as much is accepted."""
    assert compared(EXPECTED, EXPECTED, errors=Rounding(30.0, 30.0)).failures == ()
    found = compared(EXPECTED, EXPECTED, errors=Rounding(31.0, 0.0))
    (failure,) = found.failures
    assert failure.startswith("served: frame features differ by 31")
    assert found.roundings == 31
