import numpy as np
import pytest

from dfer_deploy.errors import DferDeployError
from dfer_deploy.metrics import score, softmax

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
    with pytest.raises(DferDeployError, match="0 clips"):
        score(np.array([]), np.array([]), NAMES)
    with pytest.raises(DferDeployError, match="label 3 is not one of the 3 classes"):
        score([3], [0], NAMES)


def test_softmax_does_not_overflow() -> None:
    found = softmax(np.array([[0.0, np.log(3.0)], [5000.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.25, 0.75], [1.0, 0.0]], atol=1e-6)
