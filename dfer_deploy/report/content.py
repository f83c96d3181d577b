"""What a report shows of ``verify --json`` and ``bench --json``, checked: the files may come from anywhere.

Keys that are not named here may be there and are not shown.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dfer_deploy.comparison import Flip
from dfer_deploy.metrics import CalibrationBin
from dfer_deploy.paired import Equivalence, Rate
from dfer_deploy.reading_check import ReadingCheck
from dfer_deploy.specs import require, spec_from_dict

FORMAT = "dfer-deploy-verify/2"

MOST_PICTURED = 24
"""Flipped clips that are shown with frames and probabilities."""

_MOST_CLASSES = 200
_MOST_CANDIDATES = 16

S = TypeVar("S")


@dataclass(frozen=True)
class Answers:
    """How the reference answered.

    Attributes:
        name: of the predictor.
        uar: percent.
        war: percent.
        recalls: percent by class name, None for a class without a clip.
        confusion: counts; rows are labels, columns predictions.
        calibration_error: expected calibration error in percent.
        calibration_bins: confidence against accuracy.
    """

    name: str
    uar: float
    war: float
    recalls: dict[str, Any]
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    calibration_bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class Candidate(Answers):
    """One way of serving.

    Attributes:
        max_logit_difference: of the whole model; None where an answer was not finite.
        max_logit_difference_encoder: the largest change that the image encoder causes, None likewise.
        max_logit_difference_head: of the head, None likewise.
        logit_errors: quantiles of |Δlogit| over all clips and classes, by the quantile as text, ``"0.99"``.
        equivalence: UAR and WAR against the margin.
        flip_rate: how many answers changed.
        flips: which.
        failures: one sentence for each limit that was left.
        undecided: one sentence for each question that so few clips leave open.
    """

    max_logit_difference: float | None
    max_logit_difference_encoder: float | None
    max_logit_difference_head: float | None
    logit_errors: dict[str, Any]
    equivalence: Equivalence
    flip_rate: Rate
    flips: tuple[Flip, ...]
    failures: tuple[str, ...]
    undecided: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A file of the chain from weights to result."""

    stage: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """See ``provenance.provenance``."""

    chain: tuple[Link, ...]
    name: str
    version: int
    target: str
    precision: str
    tools: dict[str, Any]
    synthetic: str | None


@dataclass(frozen=True)
class Content:
    """One verification.

    Attributes:
        format: ``dfer-deploy-verify/2``.
        failures: one sentence for everything that failed.
        undecided: one sentence for each question that so few clips leave open.
        clips: that were compared.
        class_names: in the order of the logits.
        truth: the reference.
        comparisons: the candidates, at least one.
        limits: what was accepted.
        unreadable: reasons by clip name.
        left_out: reasons by what was not verified.
        reading: how a reference checkpoint was read, where that could be checked.
        provenance: where the result comes from.
    """

    format: str
    failures: tuple[str, ...]
    undecided: tuple[str, ...]
    clips: int
    class_names: tuple[str, ...]
    truth: Answers
    comparisons: tuple[Candidate, ...]
    limits: dict[str, Any]
    unreadable: dict[str, Any]
    left_out: dict[str, Any]
    reading: ReadingCheck | None
    provenance: Provenance

    def __post_init__(self) -> None:
        require(self.format == FORMAT, f"the verification has the format {self.format!r}, expected {FORMAT!r}")
        classes = len(self.class_names)
        require(2 <= classes <= _MOST_CLASSES, f"there are {classes} classes, expected 2 to {_MOST_CLASSES}")
        candidates = len(self.comparisons)
        require(1 <= candidates <= _MOST_CANDIDATES, f"there are {candidates} comparisons, expected 1 to 16")
        limit: Any = self.limits.get("logits")
        require(_is_number(limit) and limit >= 0, f"limits.logits is {limit!r}, expected a number of at least 0")
        for answers in (self.truth, *self.comparisons):
            self._check(answers)

    def _check(self, answers: Answers) -> None:
        classes = len(self.class_names)
        square = len(answers.confusion) == classes and all(len(row) == classes for row in answers.confusion)
        counted = sum(map(sum, answers.confusion))
        require(
            square and counted == self.clips and min(map(min, answers.confusion)) >= 0,
            f"the confusion matrix of {answers.name!r} is not {classes} × {classes} counts of {self.clips} clips",
        )
        recalls = [answers.recalls.get(name) for name in self.class_names]
        require(
            all(recall is None or (_is_number(recall) and 0 <= recall <= 100) for recall in recalls),
            f"the recalls of {answers.name!r} are no percentages",
        )
        shares = [share for b in answers.calibration_bins for share in (b.confidence, b.accuracy)]
        require(
            all(0 <= share <= 1 for share in shares) and sum(b.clips for b in answers.calibration_bins) == self.clips,
            f"the calibration of {answers.name!r} is not that of {self.clips} clips, expected shares from 0 to 1",
        )
        if isinstance(answers, Candidate):
            _check_candidate(answers, classes)


def _check_candidate(candidate: Candidate, classes: int) -> None:
    for quantile, error in candidate.logit_errors.items():
        require(
            _is_quantile(quantile) and (error is None or (_is_number(error) and error >= 0)),
            f"the error {error!r} of {candidate.name!r} at the quantile {quantile!r} is no error of a logit",
        )
    for flip in candidate.flips:
        for vector in (flip.probabilities, flip.answered_probabilities):
            require(
                len(vector) == classes and all(0 <= p <= 1.0001 for p in vector),
                f"the probabilities of {flip.clip!r} by {candidate.name!r} are not {classes} numbers from 0 to 1",
            )


def content_from_json(cls: type[S], values: Mapping[str, Any]) -> S:
    """Builds what is shown from plain data; keys that are not shown are left out.

    Raises:
        DferDeployError: something that is shown is missing, has the wrong type or cannot be.
    """
    return spec_from_dict(cls, _shown(cls, values))


def _shown(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = [choice for choice in typing.get_args(hint) if choice is not types.NoneType]
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        return {key: _shown(hints[key], item) for key, item in value.items() if key in hints}
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return [_shown(typing.get_args(hint)[0], item) for item in value]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_quantile(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
