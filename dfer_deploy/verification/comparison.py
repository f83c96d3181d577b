"""One way of serving against the truth: what differs, what of it leaves a limit, and what is still open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.reading import Clip
from dfer_deploy.metrics import Calibration, Score, calibration, score, softmax
from dfer_deploy.runtimes.predictor import Float32, Predictor
from dfer_deploy.verification.folds import ComparedAnswers
from dfer_deploy.verification.limits import Limits
from dfer_deploy.verification.statistics import Equivalence, Rate, equivalence, rate

_MOST_SENTENCES = 3

QUANTILES = (0.5, 0.9, 0.99, 1.0)
"""Of the logits' errors."""


@dataclass(frozen=True)
class Flip:
    """A clip whose answer is another one than PyTorch's."""

    clip: str
    label: str
    expected: str
    answered: str
    margin: float
    """Difference of PyTorch's two largest logits: a small one was a close call."""
    probabilities: tuple[float, ...]
    """PyTorch's, in the order of the classes."""
    answered_probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """One way of serving against the truth.

    Attributes:
        name: of the predictor.
        score: its UAR, WAR and confusion matrix.
        encoder_logits: largest change of a logit that the image encoder causes.
        head_logits: largest difference of a logit of the head, given the truth's frame features.
        logits: largest difference of a logit of the whole model.
        logit_errors: quantiles of |Δlogit| over all clips and classes; infinite where an answer was not finite.
        worst: the clips whose logits differ most, the worst first, at most eight.
        calibration: confidence against accuracy.
        answers: class indices, int64 [N].
        flips: clips whose answer changed.
        flip_rate: how often that happened, on these clips and the pooled ones; clips with the same frames count once.
        equivalence: of UAR and WAR with the truth's, on the same clips.
        failures: sentences, one for each limit that was left.
        undecided: sentences, one for each question that so few clips leave open.
    """

    name: str
    score: Score
    calibration: Calibration
    encoder_logits: float
    head_logits: float
    logits: float
    logit_errors: dict[float, float]
    worst: tuple[str, ...]
    answers: npt.NDArray[np.int64]
    flips: tuple[Flip, ...]
    flip_rate: Rate
    equivalence: Equivalence
    failures: tuple[str, ...]
    undecided: tuple[str, ...]


@dataclass
class Collected:
    """What one way of serving answered, batch after batch, and the largest differences so far."""

    logits: list[Float32] = field(default_factory=list)
    encoder_logits: float = 0.0
    head_logits: float = 0.0
    probabilities: float = 0.0
    same_graphs: float = 0.0


def ask(found: Collected, predictor: Predictor, frames: Clip, true_features: Float32, true_logits: Float32) -> Float32:
    """Asks for the whole and for the head alone; gives the logits of the whole."""
    whole, head = predictor.predict(frames), predictor.classify(true_features)
    found.logits.append(whole.logits)
    found.encoder_logits = max(found.encoder_logits, largest(whole.logits - head.logits))
    found.head_logits = max(found.head_logits, largest(head.logits - true_logits))
    for answer in (whole, head):
        found.probabilities = max(found.probabilities, largest(answer.probabilities - softmax(answer.logits)))
    return whole.logits


def comparison(
    name: str,
    found: Collected,
    expected: Float32,
    compared: ComparedAnswers,
    decided_on: ComparedAnswers,
    limits: Limits,
) -> Comparison:
    """What all batches together say.

    Args:
        name: of the way of serving.
        found: what it answered.
        expected: the truth's logits, float32 [N, C].
        compared: the answers of both on these clips.
        decided_on: the same with those of earlier verifications, for the equivalence.
        limits: what is accepted.
    """
    labels, class_names, answers = compared.labels, compared.class_names, compared.candidates[name]
    logits = np.concatenate(found.logits)
    difference = largest(logits - expected)
    found_score, true_score = (score(labels, given, class_names) for given in (answers, compared.reference))
    probabilities, true_probabilities = finite_softmax(logits), finite_softmax(expected)
    found_calibration, true_calibration = (calibration(labels, of) for of in (probabilities, true_probabilities))
    changed = np.flatnonzero(answers != compared.reference)
    here = compared.once.flipped(name).mean()
    flip_rate = rate(decided_on.flipped(name), decided_on.groups)
    equal = equivalence(
        decided_on.labels,
        decided_on.reference,
        decided_on.candidates[name],
        len(class_names),
        margin=limits.points,
        groups=decided_on.groups,
    )
    gains = _recall_gains(found_score, true_score)
    checks = [
        ("a logit of the temporal head", found.head_logits, limits.head_logits),
        ("a logit", difference, limits.logits),
        ("a logit against onnxruntime in process", found.same_graphs, limits.same_graphs),
        ("a probability against the softmax of its logits", found.probabilities, limits.probabilities),
        ("UAR", abs(float(sum(gains.values()) / len(gains))), limits.points),
        ("WAR", 100 * abs(int(np.trace(found_score.confusion - true_score.confusion))) / len(labels), limits.points),
    ]
    failures = [
        f"{name}: {what} differs by {value:.3g}{' points' if what.isupper() else ''}, at most {limit:g} is accepted"
        for what, value, limit in checks
        if value > limit
    ]
    drops = [(f"the recall of {class_names[k]}", -float(gain), limits.recall_drop) for k, gain in gains.items()]
    rise = found_calibration.error - true_calibration.error
    failures += [
        f"{name}: {what} is worse by {value:.3g} points, at most {limit:g} is accepted"
        for what, value, limit in [*drops, ("the calibration", rise, limits.calibration_rise)]
        if value > limit
    ]
    top_two = np.sort(expected, axis=1)[:, -2:]
    flips = [
        Flip(
            clip=compared.clips[row],
            label=class_names[labels[row]],
            expected=class_names[compared.reference[row]],
            answered=class_names[answers[row]],
            margin=float(top_two[row, 1] - top_two[row, 0]),
            probabilities=tuple(true_probabilities[row].tolist()),
            answered_probabilities=tuple(probabilities[row].tolist()),
        )
        for row in changed
    ]
    failures += _sure_changes(name, [flip for flip in flips if flip.margin > limits.flip_margin])
    undecided = []
    if equal.verdict == "different":
        failures.append(f"{name}: {equal}")
    elif equal.verdict == "undecided":
        undecided.append(f"{name}: {equal}")
    most = f"at most {100 * limits.flips:g} % is accepted"
    if here > limits.flips:
        failures.append(f"{name}: {100 * here:.3g} % of the answers changed, {most}")
    elif flip_rate.high > limits.flips:
        undecided.append(f"{name}: {flip_rate} answers changed, {most}: too few clips to tell")
    return Comparison(
        name=name,
        score=found_score,
        calibration=found_calibration,
        encoder_logits=found.encoder_logits,
        head_logits=found.head_logits,
        logits=difference,
        logit_errors=_quantiles(logits - expected),
        worst=_worst(logits - expected, compared.clips),
        answers=answers,
        flips=tuple(flips),
        flip_rate=flip_rate,
        equivalence=equal,
        failures=tuple(failures),
        undecided=tuple(undecided),
    )


def _sure_changes(name: str, flips: Sequence[Flip]) -> list[str]:
    """A sentence for each of a few changed answers; of more, one for all, with what became what and the surest one."""
    surest = sorted(flips, key=lambda flip: -flip.margin)[:_MOST_SENTENCES]
    sentences = [
        f"{flip.clip} is answered {flip.answered}, PyTorch says {flip.expected} by {flip.margin:.3g} logits"
        for flip in surest
    ]
    if len(flips) > _MOST_SENTENCES:
        became = Counter(f"{flip.expected} → {flip.answered}" for flip in flips).most_common()
        some = ", ".join(f"{count} × {what}" for what, count in became[:_MOST_SENTENCES])
        more = ", …" if len(became) > _MOST_SENTENCES else ""
        sentences = [f"{len(flips)} answers of which PyTorch is sure changed ({some}{more}): {sentences[0]}"]
    return [f"{name}: {sentence}" for sentence in sentences]


def _recall_gains(found: Score, true: Score) -> dict[int, Fraction]:
    """By how many points the recall of each class that has clips rose, by the class's index.

    Exactly, to be rounded only once when it is held against a limit: of floats, 1.1 - 1.0 is more than a limit of 0.1.
    """
    hits = np.diag(found.confusion - true.confusion).tolist()
    clips = true.confusion.sum(axis=1).tolist()
    return {k: Fraction(100 * more, of) for k, (more, of) in enumerate(zip(hits, clips, strict=True)) if of}


def finite_softmax(logits: Float32) -> Float32:
    """Softmax; 0 where a logit is not finite, which fails by other limits and must not hide them."""
    with np.errstate(invalid="ignore"):
        probabilities: Float32 = np.nan_to_num(softmax(logits))
    return probabilities


def _quantiles(difference: Float32) -> dict[float, float]:
    if not np.isfinite(difference).all():
        return dict.fromkeys(QUANTILES, float("inf"))
    return dict(zip(QUANTILES, np.quantile(np.abs(difference), QUANTILES).tolist(), strict=True))


def _worst(difference: Float32, clips: Sequence[str]) -> tuple[str, ...]:
    """At most eight; what is not finite is worst."""
    errors = np.nan_to_num(np.abs(difference), nan=np.inf).max(axis=1)
    return tuple(clips[row] for row in np.argsort(-errors, kind="stable")[:8])


def largest(difference: Float32) -> float:
    """The largest absolute value; infinity where a number is not finite, so that it fails every limit."""
    return float(np.abs(difference).max()) if np.isfinite(difference).all() else float("inf")
