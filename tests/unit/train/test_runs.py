"""Folds and seeds: what is missing is trained, and the means and deviations are the stated ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest

from dfer_deploy.errors import TrainingError
from dfer_deploy.metrics import score, score_from_confusion
from dfer_deploy.train import runs
from dfer_deploy.train.recipe import Recipe
from dfer_deploy.train.result import TrainingResult
from dfer_deploy.train.runs import RunSummary, folds_from_text, train_all

NAMES = ("a", "b", "c")


def result_of(hits: int) -> TrainingResult:
    """Of 10 clips of the first class, 4 of the second and none of the third, ``hits`` of the first are right."""
    confusion = np.array([[hits, 10 - hits, 0], [0, 4, 0], [0, 0, 0]])
    return TrainingResult(Path("best.pt"), score_from_confusion(confusion, NAMES), NAMES, 1, "test", 1.0, (), 14, {})


def test_a_score_can_be_had_from_its_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 2, 50), rng.integers(0, 3, 50)
    whole = score(labels, predictions, NAMES)
    again = score_from_confusion(whole.confusion, NAMES)
    assert (again.uar, again.war, again.recalls, again.absent) == (whole.uar, whole.war, whole.recalls, whole.absent)


def test_means_and_deviations() -> None:
    hits = {(1, 0): 2, (1, 1): 4, (2, 0): 6, (2, 1): 10, (5, 0): 5, (5, 1): 9}
    summary = RunSummary({key: result_of(value) for key, value in hits.items()})
    wars = {key: 100 * (value + 4) / 14 for key, value in hits.items()}
    fold_means = [fmean([wars[fold, 0], wars[fold, 1]]) for fold in (1, 2, 5)]
    seed_means = [fmean([wars[1, seed], wars[2, seed], wars[5, seed]]) for seed in (0, 1)]
    assert summary.mean("war") == pytest.approx(fmean(fold_means))
    assert summary.over_folds("war") == pytest.approx(stdev(fold_means))
    assert summary.over_seeds("war") == pytest.approx(stdev(seed_means))
    assert summary.mean("uar") == pytest.approx(fmean((10 * value + 100) / 2 for value in hits.values()))
    written = json.loads(json.dumps(summary.to_dict()))
    assert written["mean"]["war"] == summary.mean("war")
    assert written["optimistic"] is True
    assert [(run["fold"], run["seed"]) for run in written["runs"]] == sorted(hits)
    one = RunSummary({(1, 0): result_of(3)})
    assert (one.over_folds("uar"), one.over_seeds("uar")) == (None, None)


@pytest.mark.parametrize(("text", "folds"), [("all", [1, 2, 3, 4, 5]), ("3", [3]), ("4,1,4", [1, 4])])
def test_folds(text: str, folds: list[int]) -> None:
    assert folds_from_text(text, 5) == folds


@pytest.mark.parametrize("text", ["0", "6", "1,x", "", "1-3"])
def test_folds_that_are_not_there(text: str) -> None:
    with pytest.raises(TrainingError, match="the recipe has 1 to 5, give all or such as 1,3"):
        folds_from_text(text, 5)


def test_only_what_is_missing_is_trained(
    recipe: Recipe, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fold in (1, 2):
        for part in ("train", "test"):
            (tmp_path / f"{part}_{fold}.txt").write_text((root / f"{part}.txt").read_text())
    lists = {"train_list": "train_{fold}.txt", "test_list": "test_{fold}.txt"}
    data = replace(recipe.data, root=str(tmp_path), data_root=str(root), folds=2, **lists)
    recipe = replace(recipe, data=data, optim=replace(recipe.optim, epochs=1, short_epochs=1))
    trained: list[tuple[int, int]] = []
    train = runs.train

    def counted(one: Recipe, output: Path, **options: Any) -> TrainingResult:
        trained.append((one.data.fold, one.run.seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(one, output, **options)

    monkeypatch.setattr(runs, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        train_all(recipe, tmp_path / "out", [1, 2], [5, 6])
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("last.pt")}
    assert sorted(path.parent.relative_to(tmp_path / "out").as_posix() for path in times) == [
        "fold_1/seed_5",
        "fold_1/seed_6",
    ]
    summary = train_all(recipe, tmp_path / "out", [1, 2], [5, 6])
    assert trained == [(1, 5), (1, 6), (2, 5), (1, 5), (1, 6), (2, 5), (2, 6)]
    assert sorted(summary.results) == [(1, 5), (1, 6), (2, 5), (2, 6)]
    assert {path: path.stat().st_mtime_ns for path in times} == times
