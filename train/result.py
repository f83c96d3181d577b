"""The result of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfer_deploy.metrics import Score, score_from_confusion

SELECTIONS = {
    "validation": "the epoch with the best WAR on clips set aside from the training list",
    "last": "the last epoch",
    "test": "the epoch with the best WAR on this very test list, as in the paper: the numbers are optimistic",
    "none": "no epoch: nothing was trained",
}
"""How the epoch was chosen, in words, by ``run.select``; ``none`` if nothing is trained (zero-shot)."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        checkpoint: the file to use: ``last.pt`` if the recipe selects the last epoch, else ``best.pt``.
        score: score of that checkpoint on the test list.
        class_names: in the order of the score's recalls.
        epoch: epoch of the checkpoint, counted from 1; 0 if nothing is trained (zero-shot).
        selected_on: how the epoch was chosen: ``validation``, ``last``, or ``test``, which makes the score optimistic;
            ``none`` if nothing is trained.
        seconds: wall time of the whole run, over all its parts.
        history: for every epoch: its number (``epoch``), mean training loss (``loss``), WAR on the training clips as
            they were shown (``train_war``), learning rates of its last step (``rates``) and, if the epoch was scored,
            ``validation_uar`` and ``validation_war``, or ``test_uar`` and ``test_war``.
        listed_clips: number of clips in the test list.
        unreadable: for each test clip that could not be read and is not in the score, its name and the reason.
    """

    checkpoint: Path
    score: Score
    class_names: tuple[str, ...]
    epoch: int
    selected_on: str
    seconds: float
    history: tuple[dict[str, Any], ...]
    listed_clips: int
    unreadable: dict[str, str]

    @property
    def test_clips(self) -> int:
        """Number of clips in the score."""
        return int(self.score.confusion.sum())

    @property
    def losses(self) -> tuple[float, ...]:
        """Mean training loss of every epoch."""
        return tuple(entry["loss"] for entry in self.history)

    @property
    def is_optimistic(self) -> bool:
        """Whether the test list also chose the epoch."""
        return self.selected_on == "test"

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers, in the form stored as JSON."""
        return {
            "checkpoint": str(self.checkpoint),
            "uar": self.score.uar,
            "war": self.score.war,
            "class_names": list(self.class_names),
            "recalls": dict(zip(self.class_names, self.score.recalls, strict=True)),
            "confusion": self.score.confusion.tolist(),
            "epoch": self.epoch,
            "selected_on": self.selected_on,
            "selection": SELECTIONS[self.selected_on],
            "optimistic": self.is_optimistic,
            "test_clips": self.test_clips,
            "listed_clips": self.listed_clips,
            "unreadable": self.unreadable,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "history": list(self.history),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: Path) -> TrainingResult:
        """Read the data of ``to_dict``. The checkpoint is in ``folder``, even if it was elsewhere before.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: the data is not that of ``to_dict``.
        """
        names = tuple(values["class_names"])
        if values["selected_on"] not in SELECTIONS:
            raise ValueError(f"selected_on is {values['selected_on']!r}")
        return cls(
            checkpoint=folder / Path(values["checkpoint"]).name,
            score=stored_score(values["confusion"], names),
            class_names=names,
            epoch=int(values["epoch"]),
            selected_on=values["selected_on"],
            seconds=float(values["seconds"]),
            history=tuple({**entry, "loss": float(entry["loss"])} for entry in values["history"]),
            listed_clips=int(values["listed_clips"]),
            unreadable=dict(values["unreadable"]),
        )


def stored_score(confusion: Any, class_names: tuple[str, ...]) -> Score:
    """Return the score of a stored confusion matrix, which is lists of counts [C, C].

    Raises:
        TypeError, ValueError, OverflowError: the value is not such a matrix.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    if counts.shape != (len(class_names),) * 2 or counts.min() < 0 or counts.sum() <= 0:
        raise ValueError(f"no confusion matrix of {len(class_names)} classes")
    return score_from_confusion(counts, class_names)
