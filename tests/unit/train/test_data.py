"""Training clips: every epoch the same for the same seed, however it is divided, and damage is left out and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import clips_of, write_frames

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.reading import Clip, Sampler
from dfer_deploy.errors import TrainingError
from dfer_deploy.train import data
from dfer_deploy.train.data import TrainingClips, frame_interval_s
from dfer_deploy.train.recipe import AugmentRecipe

LABELS = [0] * 14 + [1] * 6 + [2] * 2
"""Three classes of very different sizes."""


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    root = tmp_path_factory.mktemp("clips")
    for index, clip in enumerate(clips_of(len(LABELS), frames=20)):
        write_frames(root / f"{index:02d}", clip)
    return [Annotation(f"{index:02d}", root / f"{index:02d}", 20, label) for index, label in enumerate(LABELS)]


@pytest.fixture
def clips(annotations: list[Annotation]) -> TrainingClips:
    return TrainingClips(annotations, 16, AugmentRecipe(rotation=10, brightness=0.5), seed=3, decode_size=32)


def joined(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[bytes, int]]:
    return [
        (clip.numpy().tobytes(), int(label))
        for frames, labels in batches
        for clip, label in zip(frames, labels, strict=True)
    ]


def test_an_epoch_goes_on_from_any_step(clips: TrainingClips) -> None:
    whole = joined(clips.batches(2, 4))
    assert len(whole) == len(LABELS)
    for step in (1, 3, 5, 6):
        assert joined(clips.batches(2, 4, start_step=step)) == whole[step * 4 :]


def test_steps_that_are_passed_over_are_not_read(clips: TrainingClips, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = TrainingClips.clip

    def watched(self: TrainingClips, index: int, *arguments: int) -> np.ndarray:
        read.append(index)
        return plain(self, index, *arguments)

    monkeypatch.setattr(TrainingClips, "clip", watched)
    list(clips.batches(1, 4, start_step=4))
    assert len(read) == len(LABELS) - 16


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shards_are_the_joint_batches_in_their_order(clips: TrainingClips, world: int) -> None:
    whole = list(clips.batches(1, 4, 2))
    shards = [list(clips.batches(1, 4, 2, shard=(rank, world))) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(whole)}
    for step, (frames, labels) in enumerate(whole):
        parts = [shard[step] for shard in shards]
        assert torch.equal(torch.cat([part[0] for part in parts]), frames)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert shards[0][-1][0].shape[1:] == (2, 16, 16, 3), "an empty part has the shape of the others"


@pytest.mark.parametrize("balanced", [False, True])
def test_the_seed_decides_everything(annotations: list[Annotation], balanced: bool) -> None:
    def epoch(seed: int, number: int) -> list[tuple[bytes, int]]:
        clips = TrainingClips(annotations, 16, AugmentRecipe(), seed, balanced=balanced)
        return joined(clips.batches(number, 5, 2))

    assert epoch(0, 1) == epoch(0, 1)
    assert epoch(0, 1) != epoch(0, 2)
    assert epoch(0, 1) != epoch(1, 1)


def test_the_balanced_order_shows_every_class_equally_often(annotations: list[Annotation]) -> None:
    clips = TrainingClips(annotations, 16, AugmentRecipe(), 0, balanced=True)
    for epoch in (1, 2):
        shown = joined(clips.batches(epoch, 4))
        assert sorted(Counter(label for _, label in shown).values()) == [7, 7, 8]
        assert len({frames for frames, _ in shown}) == len(shown), "clips that come again are varied anew"
    seen = {index for epoch in range(1, 9) for index, _ in clips._order(epoch)}
    assert seen == set(range(len(LABELS))), "every clip of the large class has its turn"
    first = clips._order(1)
    assert {index for index, _ in first if LABELS[index] == 2} == {20, 21}
    assert len(set(first)) == len(first)


def damaged(annotations: list[Annotation], tmp_path: Path) -> list[Annotation]:
    """Thirty clips, the first of which is a folder without an image."""
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    return [Annotation("empty", empty, 0, 0), *annotations, *annotations[:7]]


@pytest.mark.parametrize("cache", [False, True])
def test_a_clip_that_is_not_there_is_left_out_and_named_once(
    annotations: list[Annotation], tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: bool
) -> None:
    listed = damaged(annotations, tmp_path)
    clips = TrainingClips(listed, 16, AugmentRecipe(), 0, cache=cache)
    assert len(clips) == len(listed)
    assert list(clips.unreadable) == ["empty"]
    for epoch in (1, 2):
        assert len(joined(clips.batches(epoch, 4, 2))) == len(listed) - 1
        assert clips.found == {}
    errors = " ".join(capsys.readouterr().err.split())
    assert errors.count("has no images") == 1
    assert "1 of 30 training clips cannot be read and are left out: empty:" in errors


def test_damage_that_shows_later_is_left_out_too(
    annotations: list[Annotation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = damaged(annotations, tmp_path)
    (tmp_path / "empty" / "00001.png").write_bytes(b"no picture")
    clips = TrainingClips(listed, 16, AugmentRecipe(), 0)
    assert len(clips) == len(listed)
    for epoch in (1, 2):
        batches = list(clips.batches(epoch, 1, 2))
        assert len(batches) == len(listed)
        assert sorted(len(labels) for _, labels in batches)[:2] == [0, 1]
        assert list(clips.found) == (["empty"] if epoch == 1 else [])
        clips.leave_out(clips.found)
    assert list(clips.unreadable) == ["empty"]
    assert capsys.readouterr().err.count("empty: ") == 1


def test_neither_the_cache_nor_a_clip_that_vanishes_changes_the_others(
    annotations: list[Annotation], tmp_path: Path
) -> None:
    listed = damaged(annotations, tmp_path)
    (tmp_path / "empty").rmdir()
    write_frames(tmp_path / "empty", clips_of(1, frames=20, seed=9)[0])
    (tmp_path / "empty" / "00020.png").write_bytes(b"no picture")  # a rest at the end, which 16 parts of 20 never show

    def epochs(cache: bool) -> list[list[tuple[bytes, int]]]:
        clips = TrainingClips(listed, 16, AugmentRecipe(), 0, cache=cache)
        return [joined(clips.batches(epoch, 4)) for epoch in (1, 2)]

    whole = epochs(cache=False)
    assert epochs(cache=True) == whole
    assert [len(epoch) for epoch in whole] == [30, 30]
    for file in (tmp_path / "empty").iterdir():
        file.unlink()
    for before, after in zip(whole, epochs(cache=False), strict=True):
        assert len(after) == 29
        assert after == [clip for clip in before if clip in after], "the same order"


def test_a_video_that_states_a_wrong_number_of_frames_is_drawn_as_in_the_cache(
    annotations: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = TrainingClips(annotations[:1], 16, AugmentRecipe(), 0, cache=True).clip(0, 1, 4)
    plain = data.clip_from_path

    def twice(path: Path, size: int, sampler: Sampler) -> Clip:
        sampler(25)
        return plain(path, size, sampler)

    monkeypatch.setattr(data, "clip_from_path", twice)
    assert np.array_equal(TrainingClips(annotations[:1], 16, AugmentRecipe(), 0).clip(0, 1, 4), cached)


def test_an_example_that_cannot_be_decoded_is_replaced_by_the_next(
    annotations: list[Annotation], tmp_path: Path
) -> None:
    listed = damaged(annotations, tmp_path)
    (tmp_path / "empty" / "00001.png").write_bytes(b"no picture")
    clips = TrainingClips(listed, 16, AugmentRecipe(), 0)
    assert np.array_equal(clips.example_frames(4), clips.unchanged(1, 4))
    assert list(clips.unreadable) == ["empty"]
    few = TrainingClips(listed[:10], 16, AugmentRecipe(), 0)
    with pytest.raises(TrainingError, match="1 of 10 training clips cannot be read"):
        few.example_frames(4)


@pytest.mark.parametrize("cache", [False, True])
def test_too_many_unreadable_clips_end_the_training(annotations: list[Annotation], tmp_path: Path, cache: bool) -> None:
    absent = [Annotation(name, tmp_path / name, 16, 0) for name in ("a", "b")]
    with pytest.raises(TrainingError, match=r"2 of 24 training clips cannot be read, at most 5% .*a does not exist"):
        TrainingClips([*absent, *annotations], 16, AugmentRecipe(), 0, cache=cache)


def test_frames_of_mixed_sizes_become_one_clip(tmp_path: Path) -> None:
    for index, size in enumerate((20, 32, 50)):
        write_frames(tmp_path / f"part{index}", clips_of(1, size=size, frames=1)[0])
        (tmp_path / f"part{index}" / "00001.png").rename(tmp_path / f"{index}.png")
        (tmp_path / f"part{index}").rmdir()
    clips = TrainingClips([Annotation("mixed", tmp_path, 3, 0)], 16, AugmentRecipe(), 0)
    assert clips.clip(0, 1).shape == (16, 16, 16, 3)


def test_the_frame_interval_is_that_of_the_frames_which_the_model_sees(tmp_path: Path) -> None:
    annotations = []
    for name, frames in (("short", 4), ("median", 70), ("long", 90)):
        (tmp_path / name).mkdir()
        for frame in range(frames):
            (tmp_path / name / f"{frame}.jpg").touch()
        annotations.append(Annotation(name, tmp_path / name, 1, 0))  # whose number of frames the list does not know
    assert frame_interval_s(annotations, 25) == 70 / 16 / 25
    assert frame_interval_s(annotations[:1], 25) == 1 / 25
    assert frame_interval_s([Annotation("a.mp4", tmp_path / "a.mp4", 32, 0)], 25) == 2 / 25
    for frames_per_s in (1e4, 0.01):
        with pytest.raises(TrainingError, match=rf"expected 0.01 to 60; correct .*, which is {frames_per_s:g}"):
            frame_interval_s(annotations, frames_per_s)
