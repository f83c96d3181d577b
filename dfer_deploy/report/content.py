"""What a report shows of ``verify --json`` and ``bench --json``, checked: the files may come from anywhere.

Keys that are not named here may be there and are not shown.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dfer_deploy.measurement.bench import BenchResult
from dfer_deploy.metrics import CALIBRATION_BINS, CalibrationBin
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import require
from dfer_deploy.verification.comparison import Flip
from dfer_deploy.verification.folds import FORMAT
from dfer_deploy.verification.prompt_position import ReadingCheck
from dfer_deploy.verification.provenance import CHECKPOINT
from dfer_deploy.verification.statistics import Equivalence, Interval, Rate
from dfer_deploy.verification.verify_policy import LARGEST_LOGIT_ERROR, MOST_POINTS

MOST_PICTURED = 24
"""Flipped clips that are shown with frames and probabilities."""

_MOST_CLASSES = 200
_MOST_CANDIDATES = 16
_MOST_QUANTILES = 16
_MOST_CONTESTANTS = 64
_MOST_BLOCKS = 400
_LARGEST_LOAD = 1e9
"""Clips a second, or milliseconds."""

_ROUNDING = 1e-4
"""By how much a sum of shares may leave its range."""

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
class CandidateAnswers(Answers):
    """One way of serving.

    Attributes:
        max_logit_difference: of the whole model; None where an answer was not finite.
        max_logit_difference_encoder: the largest change that the image encoder causes, None likewise.
        max_logit_difference_head: of the head, None likewise.
        logit_errors: quantiles of |Δlogit| over all clips and classes, by the quantile as text, ``"0.99"``.
        roundings: errors of the graphs in multiples of what rounding costs the model (``limits.Rounding``), None
            likewise.
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
    roundings: float | None
    equivalence: Equivalence
    flip_rate: Rate
    flips: tuple[Flip, ...]
    failures: tuple[str, ...]
    undecided: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """What was accepted: see ``limits.Limits``, and for ``roundings`` ``limits.ROUNDINGS``."""

    points: float
    logits: float
    head_logits: float
    roundings: float
    flip_margin: float
    flips: float
    recall_drop: float
    calibration_rise: float
    unreadable: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_between(f"limits.{name}", value, LARGEST_LOGIT_ERROR)


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

    def __post_init__(self) -> None:
        require(
            bool(self.chain) and self.chain[0].stage == CHECKPOINT,
            "provenance.chain does not begin with the checkpoint, expected every file from the weights to the clips",
        )


@dataclass(frozen=True)
class Block:
    """A block of the graphs against PyTorch: see ``export.layers.LayerError``.

    Attributes:
        block: its name.
        precision: of its matrix products.
        own: its own error, None where it is not finite; so is the tolerance.
        tolerance: what is accepted of it.
        within: whether it is.
        logits: largest change of a logit that it alone causes, None where that is not finite or was not measured.
    """

    block: str
    precision: str
    own: float | None
    tolerance: float | None
    within: bool
    logits: float | None

    def __post_init__(self) -> None:
        for name in (self.block, self.precision):
            _check_name(name)
        for what, value in (("own", self.own), ("tolerance", self.tolerance), ("logits", self.logits)):
            _check_between(f"{what} of the block {self.block!r}", 0 if value is None else value, LARGEST_LOGIT_ERROR)


@dataclass(frozen=True)
class Blocks:
    """Where the error comes from.

    Attributes:
        clips: on how many of the worst clips the blocks were compared.
        where: in a sentence.
        suspect: the block to blame; None where every one is within its tolerance.
        layers: in the order of the computation.
    """

    clips: int
    where: str
    suspect: str | None
    layers: tuple[Block, ...]

    def __post_init__(self) -> None:
        blocks = len(self.layers)
        require(1 <= blocks <= _MOST_BLOCKS, f"localisation has {blocks} layers, expected 1 to {_MOST_BLOCKS}")


@dataclass(frozen=True)
class ReportedBisection:
    """Which blocks must stay fp32 in an fp16 export.

    Attributes:
        keep_fp32: their names, None if the limits do not hold in fp32 either.
        command: exports it so, where there is an answer.
    """

    keep_fp32: tuple[str, ...] | None
    command: str | None


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
        ensembles: largest difference of a logit by ensemble (streams, encoded images), None where an
            answer was not finite or missing.
        provenance: where the result comes from.
        localisation: the blocks of the graphs, where PyTorch was.
        bisection: with ``--bisect``.
    """

    format: str
    failures: tuple[str, ...]
    undecided: tuple[str, ...]
    clips: int
    class_names: tuple[str, ...]
    truth: Answers
    comparisons: tuple[CandidateAnswers, ...]
    limits: Accepted
    unreadable: dict[str, Any]
    left_out: dict[str, Any]
    reading: ReadingCheck | None
    ensembles: dict[str, Any]
    provenance: Provenance
    localisation: Blocks | None = None
    bisection: ReportedBisection | None = None

    def __post_init__(self) -> None:
        require(self.format == FORMAT, f"the verification has the format {self.format!r}, expected {FORMAT!r}")
        classes = len(self.class_names)
        require(2 <= classes <= _MOST_CLASSES, f"there are {classes} classes, expected 2 to {_MOST_CLASSES}")
        candidates = len(self.comparisons)
        require(1 <= candidates <= _MOST_CANDIDATES, f"there are {candidates} comparisons, expected 1 to 16")
        names = [candidate.name for candidate in self.comparisons]
        for name in (*self.class_names, self.truth.name, *names):
            _check_name(name)
        require(len(set(names)) == candidates, f"the comparisons are called {names}, expected distinct names")
        require(self.clips >= 1, f"{self.clips} clips were compared, expected at least 1")
        for answers in (self.truth, *self.comparisons):
            self._check(answers)
        for name, difference in self.ensembles.items():
            _check_between(f"the difference of {name!r}", 0 if difference is None else difference, LARGEST_LOGIT_ERROR)

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
            all(recall is None or _is_between(recall, 0, 100) for recall in recalls),
            f"the recalls of {answers.name!r} are no percentages",
        )
        for what in ("uar", "war", "calibration_error"):
            _check_between(f"{what} of {answers.name!r}", getattr(answers, what), 100 + _ROUNDING)
        shares = [share for b in answers.calibration_bins for share in (b.confidence, b.accuracy)]
        require(
            all(0 <= share <= 1 for share in shares)
            and all(b.clips >= 1 for b in answers.calibration_bins)
            and sum(b.clips for b in answers.calibration_bins) == self.clips
            and len(answers.calibration_bins) <= CALIBRATION_BINS,
            f"the calibration of {answers.name!r} is not that of {self.clips} clips, expected shares from 0 to 1",
        )
        if isinstance(answers, CandidateAnswers):
            _check_candidate(answers, classes)


def _check_candidate(candidate: CandidateAnswers, classes: int) -> None:
    of_whom = f"of {candidate.name!r}"
    for what in ("max_logit_difference", "max_logit_difference_encoder", "max_logit_difference_head", "roundings"):
        value = getattr(candidate, what)
        _check_between(f"{what} {of_whom}", 0 if value is None else value, LARGEST_LOGIT_ERROR)
    errors = candidate.logit_errors
    require(len(errors) <= _MOST_QUANTILES, f"there are {len(errors)} logit_errors {of_whom}, expected at most 16")
    for quantile, error in errors.items():
        require(
            _is_quantile(quantile) and (error is None or _is_between(error, 0, LARGEST_LOGIT_ERROR)),
            f"the error {error!r} {of_whom} at the quantile {quantile!r} is no error of a logit",
        )
    found, flipped = candidate.equivalence, candidate.flip_rate
    require(0 < found.margin <= MOST_POINTS, f"the margin {of_whom} is {found.margin}, expected 0 to {MOST_POINTS:g}")
    _check_between(f"mcnemar_p {of_whom}", found.mcnemar_p, 1 + _ROUNDING)
    for delta, interval in ((found.delta_uar, found.interval_uar), (found.delta_war, found.interval_war)):
        _check_difference(of_whom, delta, interval)
    require(
        0 <= flipped.count <= flipped.n and 0 <= flipped.low <= flipped.high <= 1,
        f"the flip_rate {of_whom} is {flipped.count} of {flipped.n}, {flipped.low} to {flipped.high}, which cannot be",
    )
    for flip in candidate.flips:
        _check_between(f"the margin of {flip.clip!r} {of_whom}", flip.margin, LARGEST_LOGIT_ERROR)
        for vector in (flip.probabilities, flip.answered_probabilities):
            require(
                len(vector) == classes and all(0 <= p <= 1.0001 for p in vector),
                f"the probabilities of {flip.clip!r} by {candidate.name!r} are not {classes} numbers from 0 to 1",
            )


def _check_difference(of_whom: str, delta: float, interval: Interval) -> None:
    most = MOST_POINTS + _ROUNDING
    require(
        -most <= interval.low <= delta + _ROUNDING and delta - _ROUNDING <= interval.high <= most,
        f"a difference {of_whom} is {delta} with the interval {interval.low} to {interval.high}, which cannot be",
    )


def check_load(result: BenchResult) -> None:
    """Checks what is drawn of ``bench --json``.

    Raises:
        DferDeployError: it has no contestants or too many, a name that cannot be shown, or a number that cannot be.
    """
    measured = {one.name: (*one.throughput, *one.latency_ms) for one in result.in_process}
    for level in result.served:
        times = [time for load in level.rounds for time in (load.p50_ms, load.p95_ms, load.p99_ms)]
        measured[level.name] = (*level.throughput, *times)
    require(
        1 <= len(measured) <= _MOST_CONTESTANTS,
        f"the benchmark has {len(measured)} contestants, expected 1 to {_MOST_CONTESTANTS}",
    )
    rounds = [numbers for one in result.in_process for numbers in (one.throughput, one.latency_ms)]
    require(all(map(len, (*rounds, *(level.rounds for level in result.served)))), "a contestant has no rounds")
    for name in (result.machine, *measured):
        _check_name(name)
        for value in measured.get(name, ()):
            _check_between(f"a number of {name!r}", value, _LARGEST_LOAD)


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


def _check_name(name: str) -> None:
    require(bool(name.strip()) and name.isprintable(), f"the name {name!r} is empty or not printable")


def _check_between(what: str, value: Any, most: float) -> None:
    require(_is_between(value, 0, most), f"{what} is {value!r}, expected a number from 0 to {most:g}")


def _is_between(value: Any, least: float, most: float) -> bool:
    """False of NaN too, and of integers that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_quantile(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
