"""UAR, WAR and the confusion matrix. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import DferDeployError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """How well predictions fit labels.

    Attributes:
        uar: unweighted average recall in percent: the mean recall over the classes that have clips.
        war: weighted average recall in percent, which is accuracy.
        recalls: recall in percent for every class, None for a class without a clip.
        confusion: counts, int64 [C, C]; rows are labels, columns predictions.
        absent: names of the classes that have no clip and so do not enter the UAR.
    """

    uar: float
    war: float
    recalls: tuple[float | None, ...]
    confusion: Int64
    absent: tuple[str, ...]


def score(labels: npt.ArrayLike, predictions: npt.ArrayLike, class_names: Sequence[str]) -> Score:
    """Scores integer predictions [N] against integer labels [N], both in [0, C).

    Raises:
        DferDeployError: there are no clips, or a label is not one of the C classes.
    """
    truth, answers = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    count = len(class_names)
    if truth.size == 0:
        raise DferDeployError("0 clips to score, expected at least 1; look at the list of clips that could not be read")
    outside = truth[(truth < 0) | (truth >= count)]
    if outside.size:
        raise DferDeployError(
            f"the label {outside[0]} is not one of the {count} classes 0–{count - 1} ({', '.join(class_names)}); "
            "correct the annotation list"
        )
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (truth, answers), 1)
    clips = confusion.sum(axis=1)
    hits = np.diag(confusion)
    recalls = tuple(100.0 * int(h) / int(n) if n else None for h, n in zip(hits, clips, strict=True))
    present = [recall for recall in recalls if recall is not None]
    return Score(
        uar=sum(present) / len(present),
        war=100.0 * int(hits.sum()) / int(clips.sum()),
        recalls=recalls,
        confusion=confusion,
        absent=tuple(name for name, n in zip(class_names, clips, strict=True) if not n),
    )


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities [B, C] of logits [B, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
