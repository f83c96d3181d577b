from __future__ import annotations

import json

import numpy as np

from dfer_deploy.comparison import Collected, Comparison, comparison
from dfer_deploy.limits import LIMITS
from dfer_deploy.pool import ComparedAnswers
from dfer_deploy.runtimes.predictor import Float32


def compared(expected: Float32, answered: Float32) -> Comparison:
    answers = ComparedAnswers(
        class_names=("a", "b"),
        clips=tuple(f"clip {index}" for index in range(len(expected))),
        groups=None,
        labels=np.arange(len(expected)) % 2,
        reference=expected.argmax(axis=1),
        candidates={"served": answered.argmax(axis=1)},
    )
    return comparison("served", Collected([answered]), expected, answers, answers, LIMITS["fp32"])


EXPECTED = np.tile(np.array([[9, 0], [0, 9]], dtype=np.float32), (10, 1))


def test_errors_are_told_by_quantiles_over_clips_and_classes() -> None:
    answered = EXPECTED.copy()
    answered[3] += np.float32(0.004)
    found = compared(EXPECTED, answered)
    assert found.failures == ()
    assert found.logit_errors[0.5] == found.logit_errors[0.9] == 0
    assert abs(found.logit_errors[1.0] - 0.004) < 1e-6
    assert found.worst[0] == "clip 3"
    assert found.undecided == ("served: too few clips to tell: n ≥ 598 needed for ±0.5 points",)


def test_an_answer_that_is_not_finite_fails_and_can_still_be_written() -> None:
    answered = EXPECTED.copy()
    answered[3] = np.nan
    found = compared(EXPECTED, answered)
    assert any("a logit differs by inf" in failure for failure in found.failures)
    assert found.worst[0] == "clip 3"
    assert set(found.logit_errors.values()) == {float("inf")}
    (flip,) = found.flips
    json.dumps([flip.answered_probabilities, found.calibration.error], allow_nan=False)
    assert any("clip 3 is answered a, PyTorch says b by 9 logits" in failure for failure in found.failures)


def test_a_swapped_class_is_different_and_every_flip_is_named() -> None:
    found = compared(EXPECTED, EXPECTED[:, ::-1])
    assert found.equivalence.verdict == "different"
    assert "served: different: UAR or WAR differ by more than 0.5 points" in found.failures
    assert found.undecided == ()
    assert (found.flip_rate.count, len(found.flips)) == (20, 20)
