from typing import Any

import numpy as np
import pytest

from dfer_deploy.errors import SettingError
from dfer_deploy.verification.compared_answers import ComparedAnswers, pooled


def fold(first: int, **changes: Any) -> ComparedAnswers:
    values = {
        "class_names": ("a", "b"),
        "clips": tuple(f"clip {first + index}" for index in range(3)),
        "clip_hashes": tuple(f"{first + index:064x}" for index in range(3)),
        "groups": None,
        "labels": np.array([0, 1, 1]),
        "reference": np.array([0, 1, 0]),
        "candidates": {"onnxruntime fp32": np.array([0, 0, 0])},
    }
    return ComparedAnswers(**(values | changes))


def test_folds_are_joined_in_their_order() -> None:
    both = pooled([fold(0), fold(3, labels=np.array([1, 1, 0]))], "onnxruntime fp32")
    assert both.clips == tuple(f"clip {index}" for index in range(6))
    assert both.clip_hashes == tuple(f"{index:064x}" for index in range(6))
    assert both.labels.tolist() == [0, 1, 1, 1, 1, 0]
    assert both.reference.tolist() == [0, 1, 0] * 2
    assert both.candidates["onnxruntime fp32"].tolist() == [0] * 6


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (fold(2), "the clip 'clip 2' is in two of the pooled verifications"),
        (
            fold(3, clip_hashes=("a" * 64, f"{1:064x}", "b" * 64)),
            r"^the clip 'clip 4' has the frames of 'clip 1' in another pooled verification",
        ),
        (fold(3, class_names=("b", "a")), "has the classes b, a, this one a, b"),
        (fold(3, candidates={"triton grpc": np.zeros(3, np.int64)}), r"has no 'onnxruntime fp32' \(it has triton grpc"),
        (fold(3, groups=("x", "y", "z")), "has groups and another has none"),
    ],
)
def test_what_does_not_belong_together_is_not_pooled(other: ComparedAnswers, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        pooled([fold(0), other], "onnxruntime fp32")


def test_of_clips_with_the_same_frames_the_first_counts() -> None:
    same = tuple(f"{index:064x}" for index in (1, 0, 1))
    once = fold(0, clip_hashes=same, groups=("x", "y", "z")).once
    assert (once.clips, once.groups) == (("clip 0", "clip 1"), ("x", "y"))
    assert (once.labels.tolist(), once.reference.tolist()) == ([0, 1], [0, 1])
