import numpy as np

from dfer_deploy.verification.prompt_position import check_reading, is_own_test_list

LABELS = np.array([0, 1, 2, 0, 1, 2])


def _logits(hits: int) -> np.ndarray:
    answers = np.where(np.arange(6) < hits, LABELS, (LABELS + 1) % 3)
    return np.eye(3, dtype=np.float32)[answers]


def _at(**hits: int) -> dict:
    return {position: _logits(number) for position, number in hits.items()}


def test_the_right_position_reproduces_best_acc() -> None:
    check = check_reading(_at(front=2, middle=3, end=5), LABELS, 83.333336, "end")
    assert check.passed
    assert "reproduced" in str(check)


def test_a_wrong_position_fails_and_the_right_one_is_named() -> None:
    check = check_reading(_at(front=2, middle=5, end=3), LABELS, 83.333336, "end")
    assert not check.passed
    assert check.reproducing == ("middle",)
    assert "export with prompt_position='middle'" in str(check)


def test_a_list_that_cannot_tell_positions_apart_says_so() -> None:
    check = check_reading(_at(front=5, middle=3, end=5), LABELS, 83.333336, "end")
    assert check.passed
    assert "this list cannot tell it from front" in str(check)


def test_no_position_fits_another_class_order() -> None:
    check = check_reading(_at(front=1, middle=2, end=3), LABELS, 83.333336, "end")
    assert not check.passed
    assert "that is not reproduced" in str(check)


def test_best_acc_tells_its_own_list_by_its_size() -> None:
    assert is_own_test_list(85.71428680419922, 14)
    assert not is_own_test_list(85.71428680419922, 13)
    assert is_own_test_list(71.25107112253642, 2334)
    assert not is_own_test_list(71.25107112253642, 2335)
