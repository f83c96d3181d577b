import numpy as np
import pytest

from dfer_deploy.clips.sampling import sample_indices, training_indices
from dfer_deploy.errors import ClipError


@pytest.mark.parametrize(
    ("n_frames", "expected"),
    [
        (1, [0] * 16),
        (9, [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8]),
        (16, list(range(16))),
        # tick = 17 / 16: int(0.53125 + 1.0625 k)
        (17, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]),
        (64, [2 + 4 * k for k in range(16)]),
        (100, [3, 9, 15, 21, 28, 34, 40, 46, 53, 59, 65, 71, 78, 84, 90, 96]),
    ],
)
def test_the_reference_test_time_frames(n_frames: int, expected: list[int]) -> None:
    assert sample_indices(n_frames, 16).tolist() == expected


@pytest.mark.parametrize("n_frames", [1, 5, 16, 17, 31, 32, 33, 70, 1000])
def test_training_frames_lie_in_their_parts(n_frames: int) -> None:
    rng = np.random.default_rng(0)
    part = n_frames // 16
    drawn = np.stack([training_indices(n_frames, rng) for _ in range(200)])
    if n_frames <= 16:
        assert (drawn == sample_indices(n_frames)).all()
        return
    assert (drawn // part == np.arange(16)).all()
    assert {int(i) for i in drawn[:, 3] - 3 * part} == set(range(part)) or part > 30


def test_nothing_cannot_be_sampled() -> None:
    with pytest.raises(ClipError, match="of a clip of 0"):
        sample_indices(0, 16)
