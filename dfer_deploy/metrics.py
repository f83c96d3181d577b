"""UAR, WAR, confusion matrix and calibration. Needs only NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import ClipError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """The score of predictions against labels.

    Attributes:
        uar: unweighted average recall in percent: the mean recall of the classes that have clips.
        war: weighted average recall in percent, which is the accuracy.
        recalls: recall of every class in percent; None for a class without clips.
        confusion: counts, int64 [C, C]; rows are labels, columns predictions.
        absent: names of the classes without clips, which are not in the UAR.
    """

    uar: float
    war: float
    recalls: tuple[float | None, ...]
    confusion: Int64
    absent: tuple[str, ...]


def score(labels: npt.ArrayLike, predictions: npt.ArrayLike, class_names: Sequence[str]) -> Score:
    """Score integer predictions [N] against integer labels [N], both in [0, C).

    Raises:
        DferDeployError: there are no clips, or a label is not one of the C classes.
    """
    truth, answers = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    count = len(class_names)
    if truth.size == 0:
        raise ClipError("0 clips to score, expected at least 1; look at the list of clips that could not be read")
    outside = truth[(truth < 0) | (truth >= count)]
    if outside.size:
        raise ClipError(
            f"the label {outside[0]} is not one of the {count} classes 0–{count - 1} ({', '.join(class_names)}); "
            "correct the annotation list"
        )
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (truth, answers), 1)
    return score_from_confusion(confusion, class_names)


def score_from_confusion(confusion: Int64, class_names: Sequence[str]) -> Score:
    """Compute the score from counts, int64 [C, C] with at least one clip; rows are labels, columns predictions."""
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


CALIBRATION_BINS = 15
"""The number of confidence bins, as in Guo et al., section 2."""


@dataclass(frozen=True)
class CalibrationBin:
    """The clips in one confidence bin: their mean confidence, the share of right answers, and their number."""

    confidence: float
    accuracy: float
    clips: int


@dataclass(frozen=True)
class Calibration:
    """The agreement of confidence and accuracy.

    Attributes:
        error: expected calibration error in percent. It is 0 if, for example, 80 % of answers with confidence 0.8 are
            right.
        bins: bins with clips, by increasing confidence, for a reliability diagram.
    """

    error: float
    bins: tuple[CalibrationBin, ...]


def calibration(labels: npt.ArrayLike, probabilities: npt.NDArray[np.float32]) -> Calibration:
    """Compare confidence with accuracy: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.

    The confidence of a clip is the largest probability. With 15 bins (0, 1/15], …, (14/15, 1] of confidence, the error
    is the mean over all clips of |share of hits in the clip's bin - mean confidence in it|.

    Args:
        labels: int [N].
        probabilities: float [N, C], in [0, 1].

    Raises:
        DferDeployError: there are no clips.
    """
    truth = np.asarray(labels, dtype=np.int64)
    if truth.size == 0:
        raise ClipError("0 clips to score, expected at least 1; look at the list of clips that could not be read")
    confidences = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == truth
    # Of all float32 values, only 0 and 1 are on an edge, so it does not matter which bin an edge belongs to.
    places = np.minimum((confidences * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    bins = tuple(
        CalibrationBin(float(confidences[within].mean()), float(hits[within].mean()), int(within.sum()))
        for within in (places == place for place in np.unique(places))
    )
    error = sum(b.clips * abs(b.accuracy - b.confidence) for b in bins) / truth.size
    return Calibration(100.0 * error, bins)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Convert logits float32 [B, C] to probabilities float32 [B, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
