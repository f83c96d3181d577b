"""Train one recipe several times, over folds and seeds, and compute mean ± deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dfer_deploy.console import stderr
from dfer_deploy.errors import TrainingError
from dfer_deploy.train.loop import train
from dfer_deploy.train.recipe import Recipe
from dfer_deploy.train.result import SELECTIONS, TrainingResult

MEANS = (
    "UAR and WAR in percent, on each fold's test list. mean: over the folds of the mean over the seeds (with one seed, "
    "what the paper's tables give). over_folds: sample standard deviation (n − 1) of the folds' means over the seeds. "
    "over_seeds: sample standard deviation of the seeds' means over the folds. null: there is only one."
)


@dataclass(frozen=True)
class RunSummary:
    """The results of all runs of a recipe.

    Attributes:
        results: results by fold and seed, every seed for every fold; at least one.
    """

    results: dict[tuple[int, int], TrainingResult]

    @property
    def folds(self) -> list[int]:
        return sorted({fold for fold, _ in self.results})

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.results})

    def of_fold(self, measure: str, fold: int) -> float:
        """Return the mean of ``uar`` or ``war`` over the seeds of one fold."""
        return fmean(getattr(self.results[fold, seed].score, measure) for seed in self.seeds)

    def of_seed(self, measure: str, seed: int) -> float:
        """Return the mean of ``uar`` or ``war`` over the folds of one seed."""
        return fmean(getattr(self.results[fold, seed].score, measure) for fold in self.folds)

    def mean(self, measure: str) -> float:
        """Return the mean of ``uar`` or ``war`` over all runs."""
        return fmean(self.of_fold(measure, fold) for fold in self.folds)

    def over_folds(self, measure: str) -> float | None:
        """Return the deviation between the folds; None for one fold."""
        return _deviation([self.of_fold(measure, fold) for fold in self.folds])

    def over_seeds(self, measure: str) -> float | None:
        """Return the deviation between the seeds; None for one seed."""
        return _deviation([self.of_seed(measure, seed) for seed in self.seeds])

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers, in the form stored as JSON."""
        selected_on = next(iter(self.results.values())).selected_on
        measures = ("uar", "war")
        return {
            "runs": [
                {"fold": fold, "seed": seed, **result.to_dict()}
                for (fold, seed), result in sorted(self.results.items())
            ],
            "mean": {measure: self.mean(measure) for measure in measures},
            "over_folds": {measure: self.over_folds(measure) for measure in measures},
            "over_seeds": {measure: self.over_seeds(measure) for measure in measures},
            "meaning": MEANS,
            "selected_on": selected_on,
            "selection": SELECTIONS[selected_on],
            "optimistic": selected_on == "test",
        }


def train_all(
    recipe: Recipe, output: Path, folds: Sequence[int], seeds: Sequence[int], *, fresh: bool = False
) -> RunSummary:
    """Train every fold with every seed into ``OUTPUT/fold_K/seed_S``. Finished runs are not repeated.

    Args:
        recipe: recipe of all runs.
        output: folder of all runs.
        folds: numbers of folds, from 1 to the recipe's ``data.folds``.
        seeds: seeds of the runs.
        fresh: repeat finished runs too.

    Raises:
        DferDeployError: a run failed; the runs before it are kept.
    """
    results: dict[tuple[int, int], TrainingResult] = {}
    for fold in folds:
        for seed in seeds:
            stderr.print(f"fold {fold}, seed {seed}: run {len(results) + 1} of {len(folds) * len(seeds)}", markup=False)
            one = replace(recipe, data=replace(recipe.data, fold=fold), run=replace(recipe.run, seed=seed))
            results[fold, seed] = train(one, output / f"fold_{fold}" / f"seed_{seed}", fresh=fresh)
    return RunSummary(results)


def folds_from_text(text: str, count: int) -> list[int]:
    """Parse fold numbers from ``all`` or a list such as ``1,3``.

    Args:
        text: what the user wrote.
        count: number of folds of the recipe.

    Raises:
        DferDeployError: a number is not understood, or the fold does not exist.
    """
    if text == "all":
        return list(range(1, count + 1))
    try:
        folds = sorted({int(part) for part in text.split(",")})
    except ValueError:
        folds = []
    if not folds or folds[0] < 1 or folds[-1] > count:
        raise TrainingError(
            f"the folds {text!r} are not understood; the recipe has 1 to {count}, give all or such as 1,3"
        )
    return folds


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
