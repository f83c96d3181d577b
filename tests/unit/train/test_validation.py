"""The validation part: stratified, the same for the same seed, and no clip on both sides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import SettingError
from dfer_deploy.train.validation import split_validation

SIZES = {0: 40, 1: 25, 2: 3, 3: 2, 4: 1}


def listed() -> list[Annotation]:
    """Clips of five classes of very different sizes, mixed."""
    clips = [(f"{label}/{index}", label) for label, size in SIZES.items() for index in range(size)]
    return [Annotation(name, Path(name), 16, label) for name, label in sorted(clips, key=lambda clip: clip[0][::-1])]


def test_every_class_gives_its_share_and_no_clip_is_lost() -> None:
    annotations = listed()
    training, validation = split_validation(annotations, 0.2, seed=0)
    assert Counter(clip.label for clip in validation) == {0: 8, 1: 5, 2: 1, 3: 1}
    assert sorted([*training, *validation], key=annotations.index) == annotations
    assert not {clip.name for clip in training} & {clip.name for clip in validation}
    for part in (training, validation):
        assert part == sorted(part, key=annotations.index)


def test_a_large_share_leaves_a_training_clip_of_every_class() -> None:
    training, _ = split_validation(listed(), 0.99, seed=0)
    assert Counter(clip.label for clip in training) == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}


def test_the_seed_and_not_the_order_of_the_list_decides() -> None:
    annotations = listed()
    _, first = split_validation(annotations, 0.2, seed=0)
    _, turned = split_validation(annotations[::-1], 0.2, seed=0)
    _, other = split_validation(annotations, 0.2, seed=1)
    assert set(turned) == set(first) != set(other)


def test_impossible_requests_are_named() -> None:
    with pytest.raises(SettingError, match=r"share is 1.0, expected a share between 0 and 1"):
        split_validation(listed(), 1.0, seed=0)
    lonely = [clip for clip in listed() if clip.label == 4]
    with pytest.raises(SettingError, match="none of the 1 classes has two training clips"):
        split_validation(lonely, 0.2, seed=0)
