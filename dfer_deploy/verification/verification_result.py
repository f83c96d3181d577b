"""The result of ``verify``: one frozen dataclass. Tables, JSON, the report and the exit code are made from it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import DferDeployError, ExitCode, ResultError
from dfer_deploy.metrics import CALIBRATION_BINS, CalibrationBin, calibration, score
from dfer_deploy.plain_data import json_values, result_from_json
from dfer_deploy.specs import Precision, require
from dfer_deploy.verification.blocks import Bisection, BlockComparison
from dfer_deploy.verification.bounds import (
    MAX_LOGIT_ERROR,
    MAX_POINTS,
    ROUNDING,
    check_between,
    check_name,
    is_between,
)
from dfer_deploy.verification.compared_answers import ComparedAnswers
from dfer_deploy.verification.limits import Limits, Rounding
from dfer_deploy.verification.prompt_position import ReadingCheck
from dfer_deploy.verification.provenance import Provenance
from dfer_deploy.verification.statistics import Equivalence, Rate

FORMAT = "dfer-deploy-verify/2"
"""Format of ``VerificationResult.to_dict`` and of the JSON that ``verify --json`` writes."""

_MAX_CLASSES = 200
"""Largest number of classes in a result. Results come from files, and reading a larger one would cost memory."""

_MAX_CANDIDATES = 16
"""Largest number of ways of serving in a result, for the same reason."""

_MAX_QUANTILES = 16
"""Largest number of quantiles of a way of serving, for the same reason."""


@dataclass(frozen=True)
class ScoredAnswers:
    """The scores of a predictor's answers.

    Attributes:
        name: name of the predictor.
        uar: unweighted average recall, in percent.
        war: weighted average recall, in percent.
        recalls: recall in percent by class name; None for a class without clips.
        confusion: counts, [C, C]; rows are labels, columns are predictions.
        calibration_error: expected calibration error in percent.
        calibration_bins: bins of confidence with their accuracy.
    """

    name: str
    uar: float
    war: float
    recalls: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    calibration_bins: tuple[CalibrationBin, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without clips, which therefore do not count in the UAR."""
        return tuple(name for name, recall in self.recalls.items() if recall is None)


@dataclass(frozen=True)
class Flip:
    """A clip with another answer than PyTorch's.

    Attributes:
        clip: name of the clip.
        label: class name of the label.
        expected: class name of PyTorch's answer.
        answered: class name of the candidate's answer.
        margin: difference of PyTorch's two largest logits; a small one means a close decision.
        probabilities: PyTorch's probabilities, in the order of the classes.
        answered_probabilities: the candidate's probabilities, in the order of the classes.
    """

    clip: str
    label: str
    expected: str
    answered: str
    margin: float
    probabilities: tuple[float, ...]
    answered_probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Comparison(ScoredAnswers):
    """One way of serving compared with the truth. A difference is infinite if an answer was not finite.

    Attributes:
        max_logit_difference: largest difference of a logit of the whole model.
        max_logit_difference_encoder: largest change of a logit that the image encoder causes.
        max_logit_difference_head: largest difference of a logit of the head, for the truth's frame features.
        errors: errors of both graphs on the first clips of the list.
        roundings: these errors in multiples of what rounding costs the model.
        logit_errors: quantiles of |Δlogit| over all clips and classes, by the quantile as text, such as ``"0.99"``.
        equivalence: equivalence of UAR and WAR with the truth's.
        flip_rate: rate of changed answers on these clips and the pooled ones; clips with equal frames count once.
        flips: the clips whose answer changed.
        failures: one sentence for each exceeded limit.
        undecided: one sentence for each question that too few clips leave open.
    """

    max_logit_difference: float
    max_logit_difference_encoder: float
    max_logit_difference_head: float
    errors: Rounding
    roundings: float
    logit_errors: dict[str, float]
    equivalence: Equivalence
    flip_rate: Rate
    flips: tuple[Flip, ...]
    failures: tuple[str, ...]
    undecided: tuple[str, ...]

    def recall_deltas(self, truth: ScoredAnswers) -> dict[str, float | None]:
        """Return the recall of each class minus the truth's, in points; None for a class without clips."""
        pairs = {name: (before, self.recalls.get(name)) for name, before in truth.recalls.items()}
        return {name: None if a is None or b is None else b - a for name, (a, b) in pairs.items()}


@dataclass(frozen=True)
class VerificationResult:
    """The result of a verification.

    Attributes:
        class_names: in the order of the logits.
        answers: answers of the truth and of every way of serving, by clip.
        truth: the truth's score.
        comparisons: one for each way of serving; at least one.
        limits: the accepted differences.
        rounding: what rounding to each precision costs the model on the first clips.
        failures: one sentence for each failure.
        undecided: one sentence for each question that too few clips leave open.
        unreadable: for each clip that could not be read, its name and the reason.
        left_out: for everything that was not verified, its name and the reason.
        urls: the given addresses of servers.
        ensembles: largest difference of a logit, by the ensemble for streams or encoded images; infinite if an answer
            was not finite or missing. Empty if no server was asked.
        provenance: the origin of the result.
        reading: the check how a reference checkpoint was read; None if it could not be made.
        localisation: the comparison of the graphs' blocks; None without PyTorch.
        bisection: the blocks that must stay fp32; None if they were not searched.
    """

    class_names: tuple[str, ...]
    answers: ComparedAnswers
    truth: ScoredAnswers
    comparisons: tuple[Comparison, ...]
    limits: Limits
    rounding: dict[Precision, Rounding]
    failures: tuple[str, ...]
    undecided: tuple[str, ...]
    unreadable: dict[str, str]
    left_out: dict[str, str]
    ensembles: dict[str, float]
    provenance: Provenance
    urls: tuple[str, ...] = ()
    reading: ReadingCheck | None = None
    localisation: BlockComparison | None = None
    bisection: Bisection | None = None

    def check(self) -> None:
        """Refuse what ``verify`` cannot have found: results are read from files, which may come from anywhere.

        Raises:
            DferDeployError: a number, a name or a count cannot be, or two parts contradict each other.
        """
        classes, candidates = len(self.class_names), len(self.comparisons)
        require(2 <= classes <= _MAX_CLASSES, f"there are {classes} classes, expected 2 to {_MAX_CLASSES}")
        require(1 <= candidates <= _MAX_CANDIDATES, f"there are {candidates} comparisons, expected 1 to 16")
        names = [candidate.name for candidate in self.comparisons]
        for name in (*self.class_names, self.truth.name, *names):
            check_name(name)
        require(len(set(names)) == candidates, f"the comparisons are called {names}, expected distinct names")
        require(set(names) == set(self.answers.candidates), f"the answers are not those of {', '.join(names)}")
        require(self.clips >= 1, f"{self.clips} clips were compared, expected at least 1")
        for answers in (self.truth, *self.comparisons):
            _check_scores(answers, self.class_names, self.clips)
        for candidate in self.comparisons:
            _check_candidate(candidate, classes)
            self._check_answers(candidate)
        for name, difference in self.ensembles.items():
            _check_difference(f"the difference of {name!r}", difference)
        if self.localisation is not None:
            self.localisation.check()
        if self.bisection is not None:
            self.bisection.localisation.check()

    def _check_answers(self, candidate: Comparison) -> None:
        """Refuse a comparison that contradicts the answers or the outcome."""
        answers = self.answers.candidates[candidate.name]
        counted = np.zeros((len(self.class_names),) * 2, np.int64)
        np.add.at(counted, (self.answers.labels, answers), 1)
        require(
            np.array_equal(counted, candidate.confusion),
            f"the confusion matrix of {candidate.name!r} contradicts its answers",
        )
        require(
            set(candidate.failures) <= set(self.failures) and set(candidate.undecided) <= set(self.undecided),
            f"a failure or an open question of {candidate.name!r} is not among those of the whole",
        )

    @property
    def clips(self) -> int:
        """Number of compared clips."""
        return len(self.answers.clips)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code. A failure takes precedence over an open question."""
        if self.failures:
            return ExitCode.GATE_FAILED
        return ExitCode.UNDECIDED if self.undecided else ExitCode.DONE

    @property
    def passed(self) -> bool:
        """Whether nothing failed. Too few clips to decide is not a failure."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data, which ``from_dict`` reads. None replaces values that are not finite."""
        values: dict[str, Any] = json_values(self)
        del values["answers"]["class_names"]
        for candidate, found in zip(values["comparisons"], self.comparisons, strict=True):
            candidate["recall_deltas"] = found.recall_deltas(self.truth)
        if self.reading is not None:
            values["reading"]["passed"] = self.reading.passed
        if self.localisation is not None:
            values["localisation"] |= _derived(self.localisation)
        if self.bisection is not None:
            values["bisection"]["localisation"] |= _derived(self.bisection.localisation)
        return {
            "format": FORMAT,
            "passed": self.passed,
            "exit_code": int(self.exit_code),
            "clips": self.clips,
            "checkpoint_sha256": self.provenance.chain[0].sha256,
        } | values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VerificationResult:
        """Read a result from the data of ``to_dict``. Unknown keys are ignored.

        Raises:
            DferDeployError: the format is not supported, or a value is missing, has the wrong type or is out of range.
        """
        if not isinstance(values, Mapping):
            raise ResultError(f"a verification is {str(values)[:80]!r}, expected a table")
        found = values.get("format")
        if found != FORMAT:
            raise ResultError(f"the verification has the format {found!r}, expected {FORMAT!r}")
        answers = values.get("answers")
        if isinstance(answers, Mapping):
            values = {**values, "answers": {**answers, "class_names": values.get("class_names")}}
        try:
            result = result_from_json(cls, values)
            result.check()
        except DferDeployError as error:
            raise ResultError(str(error)) from error
        for what, stated in (("clips", result.clips), ("passed", result.passed), ("exit_code", result.exit_code)):
            if values.get(what) != stated:
                raise ResultError(
                    f"{what} is {values.get(what)!r}, which contradicts the rest: expected {json_values(stated)!r}"
                )
        return result


def scored_answers(
    name: str,
    labels: npt.NDArray[np.int64],
    answers: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    class_names: tuple[str, ...],
) -> ScoredAnswers:
    """Score the answers of one predictor.

    Args:
        name: name of the predictor.
        labels: int64 [N].
        answers: class indices, int64 [N].
        probabilities: float32 [N, C].
        class_names: in the order of the C classes.
    """
    found, trust = score(labels, answers, class_names), calibration(labels, probabilities)
    return ScoredAnswers(
        name=name,
        uar=found.uar,
        war=found.war,
        recalls=dict(zip(class_names, found.recalls, strict=True)),
        confusion=tuple(map(tuple, found.confusion.tolist())),
        calibration_error=trust.error,
        calibration_bins=trust.bins,
    )


def _derived(found: BlockComparison) -> dict[str, Any]:
    """Return values for readers of the JSON that can be derived from the others."""
    return {
        "where": found.where or str(found),
        "suspect": found.suspect.block if found.failing else None,
        "roundings": json_values(found.needed),
        "layers": [
            {**json_values(layer), **json_values({"tolerance": layer.tolerance, "within": layer.within})}
            for layer in found.layers
        ],
    }


def _check_scores(answers: ScoredAnswers, class_names: tuple[str, ...], clips: int) -> None:
    classes = len(class_names)
    square = len(answers.confusion) == classes and all(len(row) == classes for row in answers.confusion)
    require(
        square and sum(map(sum, answers.confusion)) == clips and min(map(min, answers.confusion)) >= 0,
        f"the confusion matrix of {answers.name!r} is not {classes} × {classes} counts of {clips} clips",
    )
    require(
        set(answers.recalls) == set(class_names)
        and all(recall is None or is_between(recall, 0, 100) for recall in answers.recalls.values()),
        f"the recalls of {answers.name!r} are not percentages, one for each class",
    )
    for what in ("uar", "war", "calibration_error"):
        check_between(f"{what} of {answers.name!r}", getattr(answers, what), 100 + ROUNDING)
    bins = answers.calibration_bins
    require(
        all(0 <= share <= 1 for b in bins for share in (b.confidence, b.accuracy))
        and all(b.clips >= 1 for b in bins)
        and sum(b.clips for b in bins) == clips
        and len(bins) <= CALIBRATION_BINS,
        f"the calibration of {answers.name!r} is not that of {clips} clips, expected shares from 0 to 1",
    )


def _check_candidate(candidate: Comparison, classes: int) -> None:
    of_whom = f"of {candidate.name!r}"
    for what in ("max_logit_difference", "max_logit_difference_encoder", "max_logit_difference_head", "roundings"):
        _check_difference(f"{what} {of_whom}", getattr(candidate, what))
    errors = candidate.logit_errors
    require(len(errors) <= _MAX_QUANTILES, f"there are {len(errors)} logit_errors {of_whom}, expected at most 16")
    for quantile, error in errors.items():
        require(_is_quantile(quantile), f"the quantile {quantile!r} of the logit_errors {of_whom} is not from 0 to 1")
        _check_difference(f"the error of a logit {of_whom} at the quantile {quantile}", error)
    found, flipped = candidate.equivalence, candidate.flip_rate
    require(0 < found.margin <= MAX_POINTS, f"the margin {of_whom} is {found.margin}, expected 0 to {MAX_POINTS:g}")
    check_between(f"mcnemar_p {of_whom}", found.mcnemar_p, 1 + ROUNDING)
    most = MAX_POINTS + ROUNDING
    for delta, interval in ((found.delta_uar, found.interval_uar), (found.delta_war, found.interval_war)):
        require(
            -most <= interval.low <= delta + ROUNDING and delta - ROUNDING <= interval.high <= most,
            f"a difference {of_whom} is {delta} with the interval {interval.low} to {interval.high}, which cannot be",
        )
    require(
        min(found.clips, found.lost, found.gained, 1 if found.groups is None else found.groups) >= 0,
        f"a count of the equivalence {of_whom} is negative",
    )
    require(
        0 <= flipped.count <= flipped.n and 0 <= flipped.low <= flipped.high <= 1,
        f"the flip_rate {of_whom} is {flipped.count} of {flipped.n}, {flipped.low} to {flipped.high}, which cannot be",
    )
    for flip in candidate.flips:
        check_between(f"the margin of {flip.clip!r} {of_whom}", flip.margin, MAX_LOGIT_ERROR)
        for vector in (flip.probabilities, flip.answered_probabilities):
            require(
                len(vector) == classes and all(0 <= p <= 1 + ROUNDING for p in vector),
                f"the probabilities of {flip.clip!r} by {candidate.name!r} are not {classes} numbers from 0 to 1",
            )


def _check_difference(what: str, value: float) -> None:
    """Refuse a difference that is neither in range nor infinite; infinity replaces values that are not finite."""
    if not math.isinf(value) or value < 0:
        check_between(what, value, MAX_LOGIT_ERROR)


def _is_quantile(text: str) -> bool:
    return re.fullmatch(r"0|1|0\.[0-9]{1,9}", text) is not None
