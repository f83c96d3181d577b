"""The list of a run's test clips: read from anywhere it gives the same clips and labels, and it replaces nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dfer_deploy.clips.annotations import Annotation, read_annotations
from dfer_deploy.errors import TrainingError
from dfer_deploy.train.layouts import test_annotations as clips_of_the_test
from dfer_deploy.train.recipe import Recipe
from dfer_deploy.train.test_list import require_another_list, write_reference_list, write_test_list


def test_it_is_read_as_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips = [Annotation("7", Path("a folder/7"), 12, 1), Annotation("8.mp4", tmp_path / "8.mp4", 0, 0)]
    (tmp_path / "run").mkdir()
    write_reference_list(tmp_path / "run" / "out.txt", clips)
    monkeypatch.chdir("/")
    found = read_annotations(tmp_path / "run" / "out.txt", 2)
    assert [(clip.path, clip.listed_frames, clip.label) for clip in found] == [
        (tmp_path / "a folder/7", 12, 1),
        (tmp_path / "8.mp4", 0, 0),
    ]


@pytest.mark.parametrize("name", ["two\nlines", "\u2028", os.fsdecode(b"\xff")])
def test_a_path_that_is_no_line_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError, match="cannot name the clip"):
        write_reference_list(tmp_path / "out.txt", [Annotation("a", tmp_path / name / "a", 1, 0)])
    assert not list(tmp_path.iterdir())


def test_labels_are_those_of_the_model(recipe: Recipe, tmp_path: Path) -> None:
    names = recipe.model.prompts.class_names
    labels = {str(index): names[(index + 3) % 7] for index in range(7)}
    recipe = replace(recipe, data=replace(recipe.data, label_names=labels))
    found = read_annotations(write_test_list(recipe, tmp_path), 7)
    assert sorted(clip.label for clip in found) == list(range(7))
    assert [clip.label for clip in found] == [clip.label for clip in clips_of_the_test(recipe)]
    assert all(clip.path.is_dir() for clip in found)
    listed = read_annotations(Path(recipe.data.root or "") / "test.txt", 7)
    assert [(clip.label + 3) % 7 for clip in listed] == [clip.label for clip in found]


def test_the_data_set_s_own_list_is_never_replaced(recipe: Recipe, root: Path, tmp_path: Path) -> None:
    before = (root / "test.txt").read_text()
    with pytest.raises(TrainingError, match=r"is a list of the data set.*choose another -o"):
        write_test_list(recipe, root)
    assert (root / "test.txt").read_text() == before
    folds = replace(recipe.data, folds=2, fold=2, train_list="{fold}.txt", test_list="fold_{fold}/test.txt")
    with pytest.raises(TrainingError, match="choose another -o"):
        require_another_list(replace(recipe, data=folds), root / "fold_2")
    require_another_list(replace(recipe, data=folds), root / "fold_1")
    require_another_list(recipe, tmp_path)
