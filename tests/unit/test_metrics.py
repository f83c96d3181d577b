import numpy as np
import pytest

from dfer_deploy.errors import ClipError
from dfer_deploy.metrics import CalibrationBin, calibration, score, softmax

NAMES = ("a", "b", "c")


def test_uar_is_the_mean_recall_and_war_the_accuracy() -> None:
    result = score([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 0, 2, 2], NAMES)
    assert result.recalls == (75.0, 50.0, 100.0)
    assert result.uar == pytest.approx(75.0)
    assert result.war == pytest.approx(75.0)
    assert result.confusion.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 2]]


def test_a_class_without_clips_is_reported_and_left_out() -> None:
    result = score([0, 0, 0, 1], [0, 0, 2, 1], NAMES)
    assert result.absent == ("c",)
    assert result.recalls[2] is None
    assert result.uar == pytest.approx((200 / 3 + 100) / 2)


def test_nothing_to_score_and_foreign_labels_are_refused() -> None:
    with pytest.raises(ClipError, match="0 clips"):
        score(np.array([]), np.array([]), NAMES)
    with pytest.raises(ClipError, match="label 3 is not one of the 3 classes"):
        score([3], [0], NAMES)
    with pytest.raises(ClipError, match="label -1 is not one of the 3 classes"):
        score([0, -1], [0, 0], NAMES)


def test_softmax_does_not_overflow() -> None:
    found = softmax(np.array([[0.0, np.log(3.0)], [5000.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.25, 0.75], [1.0, 0.0]], atol=1e-6)


def test_calibration_error_is_the_mean_gap_of_confidence_and_accuracy() -> None:
    # Two bins: three answers with confidence 0.9 of which two are right, one with 0.5 that is wrong.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], dtype=np.float32)
    found = calibration([0, 1, 1, 1], probabilities).error
    assert found == pytest.approx(100 * (3 * abs(2 / 3 - 0.9) + 1 * abs(0 - 0.5)) / 4, abs=1e-4)


def test_the_bins_of_a_reliability_diagram() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], dtype=np.float32)
    low, high = calibration([0, 1, 1, 1], probabilities).bins
    assert low == CalibrationBin(confidence=0.5, accuracy=0.0, clips=1)
    assert (high.clips, high.accuracy) == (3, pytest.approx(2 / 3))
    assert high.confidence == pytest.approx(0.9)


def test_calibration_error_does_not_cancel_between_bins() -> None:
    # Wrong at 0.6, right at 0.6 + 1/15: in one bin the gaps would cancel partly.
    probabilities = np.array([[0.62, 0.38], [0.7, 0.3]], dtype=np.float32)
    assert calibration([1, 0], probabilities).error == pytest.approx(100 * (0.62 + 0.3) / 2, abs=1e-4)
    assert calibration([0], np.array([[1.0, 0.0]], dtype=np.float32)).error == 0
    # A confidence of 1 belongs to the last bin, as 0.95 does: one of two is right there.
    probabilities = np.array([[1.0, 0.0], [0.95, 0.05]], dtype=np.float32)
    assert calibration([1, 0], probabilities).error == pytest.approx(100 * abs(1 / 2 - 0.975), abs=1e-4)
    with pytest.raises(ClipError, match="0 clips"):
        calibration([], np.zeros((0, 2), dtype=np.float32))


def test_calibration_error_of_a_calibrated_model_is_small() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(7), 20_000).astype(np.float32)
    labels = np.array([rng.choice(7, p=row / row.sum()) for row in probabilities.astype(np.float64)])
    assert calibration(labels, probabilities).error < 1.5
    assert calibration(np.zeros(20_000), probabilities).error > 10
