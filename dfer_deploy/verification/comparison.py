"""Judge one way of serving against the truth: the differences, the limits that they exceed, and open questions."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.reading import Clip
from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.predictor import Float32, Frames, Predictor
from dfer_deploy.verification.compared_answers import ComparedAnswers
from dfer_deploy.verification.limits import Limits, Rounding
from dfer_deploy.verification.statistics import Equivalence, Rate, equivalence, rate
from dfer_deploy.verification.verification_result import Comparison, Flip, ScoredAnswers, scored_answers

QUANTILES = (0.5, 0.9, 0.99, 1.0)
"""Quantiles of the logit errors that a result reports."""

WORST_CLIPS = 3
"""Number of clips whose frames are kept to compare the blocks. Measuring the effect of each block on the logits
takes about 20 s for each clip with ViT-B/32 on two cores."""

_NAMED_CHANGES = 3
"""Largest number of changed answers that get a sentence each. More changes share one sentence."""


@dataclass
class Collected:
    """The answers of one way of serving, collected batch by batch.

    Attributes:
        name: name of the predictor.
        logits: float32 [B, C] for every batch.
        encoder_logits: largest change of a logit so far that the image encoder causes.
        head_logits: largest difference of a logit of the head so far, for the truth's frame features.
        probabilities: largest difference of a probability so far from the softmax of the logits beside it.
        same_graphs: largest difference of a logit so far from the first predictor that runs the same graphs.
        errors: errors of both graphs on the first clips.
        worst: (largest |Δlogit|, minus the row, frames) of the clips that differ most, unordered.
    """

    name: str
    logits: list[Float32] = field(default_factory=list)
    encoder_logits: float = 0.0
    head_logits: float = 0.0
    probabilities: float = 0.0
    same_graphs: float = 0.0
    errors: Rounding = Rounding(0.0, 0.0)
    worst: list[tuple[float, int, Clip]] = field(default_factory=list)

    def ask(self, predictor: Predictor, frames: Frames, true_features: Float32, true_logits: Float32) -> Float32:
        """Ask for the whole model and for the head alone; return the logits of the whole model, float32 [B, C]."""
        whole, head = predictor.predict(frames), predictor.classify(true_features)
        first = sum(map(len, self.logits))
        self.logits.append(whole.logits)
        self.encoder_logits = max(self.encoder_logits, largest(whole.logits - head.logits))
        self.head_logits = max(self.head_logits, largest(head.logits - true_logits))
        for answer in (whole, head):
            self.probabilities = max(self.probabilities, largest(answer.probabilities - softmax(answer.logits)))
        for row, clip in enumerate(frames):
            error = largest(whole.logits[row] - true_logits[row])
            entry = (error, -(first + row), clip)
            if len(self.worst) < WORST_CLIPS:
                heapq.heappush(self.worst, entry)
            elif entry[:2] > self.worst[0][:2]:
                heapq.heapreplace(self.worst, entry)
        return whole.logits

    @property
    def worst_clips(self) -> Frames:
        """Return the clips whose logits differ most, in the order of the list, uint8 [at most 3, 16, S, S, 3]."""
        return np.stack([clip for _, _, clip in sorted(self.worst, key=lambda entry: -entry[1])])


def comparison(
    found: Collected,
    expected: Float32,
    compared: ComparedAnswers,
    decided_on: ComparedAnswers,
    limits: Limits,
    rounding: Rounding,
) -> Comparison:
    """Judge one way of serving by all its batches together.

    Args:
        found: the answers of the way of serving.
        expected: the truth's logits, float32 [N, C].
        compared: the answers of both to these clips.
        decided_on: the same, with the answers of earlier verifications, for the test of equivalence.
        limits: the accepted differences.
        rounding: what rounding to the precision of ``limits`` costs the model.
    """
    name, labels, class_names = found.name, compared.labels, compared.class_names
    logits = np.concatenate(found.logits)
    probabilities, true_probabilities = finite_softmax(logits), finite_softmax(expected)
    answers = compared.candidates[name]
    scored = scored_answers(name, labels, answers, probabilities, class_names)
    truth = scored_answers("", labels, compared.reference, true_probabilities, class_names)
    flips = _flips(compared, name, expected, true_probabilities, probabilities)
    flip_rate = rate(decided_on.flipped(name), decided_on.groups)
    equal = equivalence(
        decided_on.labels,
        decided_on.reference,
        decided_on.candidates[name],
        len(class_names),
        margin=limits.points,
        groups=decided_on.groups,
    )
    difference = largest(logits - expected)
    failures = [
        *limits.rounding_failures(found.errors, rounding),
        *limit_failures(found, difference, limits),
        *_score_failures(scored, truth, limits),
        *_sure_changes([flip for flip in flips if flip.margin > limits.flip_margin]),
    ]
    undecided: list[str] = []
    _decide(equal, flip_rate, float(compared.once.flipped(name).mean()), limits, failures, undecided)
    return Comparison(
        **vars(scored),
        max_logit_difference=difference,
        max_logit_difference_encoder=found.encoder_logits,
        max_logit_difference_head=found.head_logits,
        errors=found.errors,
        roundings=found.errors.multiples_of(rounding),
        logit_errors=_quantiles(logits - expected),
        equivalence=equal,
        flip_rate=flip_rate,
        flips=tuple(flips),
        failures=tuple(f"{name}: {failure}" for failure in failures),
        undecided=tuple(f"{name}: {sentence}" for sentence in undecided),
    )


def limit_failures(found: Collected, difference: float, limits: Limits) -> list[str]:
    """Return one sentence for each difference above its limit; ``difference`` is that of the whole model's logits."""
    checks = (
        ("a logit of the temporal head", found.head_logits, limits.head_logits),
        ("a logit", difference, limits.logits),
        ("a logit against onnxruntime in process", found.same_graphs, limits.same_graphs),
        ("a probability against the softmax of its logits", found.probabilities, limits.probabilities),
    )
    return [
        f"{what} differs by {value:.3g}, at most {limit:g} is accepted"
        for what, value, limit in checks
        if value > limit
    ]


def _score_failures(scored: ScoredAnswers, truth: ScoredAnswers, limits: Limits) -> list[str]:
    """Compare UAR, WAR, recalls and calibration, all in percentage points; return one sentence for each failure."""
    gains = _recall_gains(scored, truth)
    hits = int(np.trace(np.array(scored.confusion) - np.array(truth.confusion)))
    differences = (
        ("UAR", abs(float(sum(gains.values()) / len(gains)))),
        ("WAR", 100 * abs(hits) / int(np.sum(truth.confusion))),
    )
    failures = [
        f"{what} differs by {value:.3g} points, at most {limits.points:g} is accepted"
        for what, value in differences
        if value > limits.points
    ]
    losses = [(f"the recall of {name}", -float(gain), limits.recall_drop) for name, gain in gains.items()]
    rise = scored.calibration_error - truth.calibration_error
    failures += [
        f"{what} is worse by {value:.3g} points, at most {limit:g} is accepted"
        for what, value, limit in [*losses, ("the calibration", rise, limits.calibration_rise)]
        if value > limit
    ]
    return failures


def _decide(
    equal: Equivalence, flip_rate: Rate, changed: float, limits: Limits, failures: list[str], undecided: list[str]
) -> None:
    """Add the conclusions of the statistics to the failures or to the open questions.

    Args:
        equal: equivalence of UAR and WAR.
        flip_rate: rate of changed answers on all clips that decide.
        changed: share of changed answers on the clips of this verification, in [0, 1].
        limits: the accepted differences.
        failures: sentences so far; extended in place.
        undecided: sentences so far; extended in place.
    """
    if equal.verdict == "different":
        failures.append(str(equal))
    elif equal.verdict == "undecided":
        undecided.append(str(equal))
    most = f"at most {100 * limits.flips:g} % is accepted"
    if changed > limits.flips:
        failures.append(f"{100 * changed:.3g} % of the answers changed, {most}")
    elif flip_rate.high > limits.flips:
        undecided.append(f"{flip_rate} answers changed, {most}: too few clips to tell")


def _flips(
    compared: ComparedAnswers, name: str, expected: Float32, true_probabilities: Float32, probabilities: Float32
) -> list[Flip]:
    class_names, answers = compared.class_names, compared.candidates[name]
    top_two = np.sort(expected, axis=1)[:, -2:]
    return [
        Flip(
            clip=compared.clips[row],
            label=class_names[compared.labels[row]],
            expected=class_names[compared.reference[row]],
            answered=class_names[answers[row]],
            margin=float(top_two[row, 1] - top_two[row, 0]),
            probabilities=tuple(true_probabilities[row].tolist()),
            answered_probabilities=tuple(probabilities[row].tolist()),
        )
        for row in np.flatnonzero(answers != compared.reference)
    ]


def _sure_changes(flips: Sequence[Flip]) -> list[str]:
    """Return a sentence for each of a few changed answers, else one sentence with counts and the surest change."""
    surest = sorted(flips, key=lambda flip: -flip.margin)[:_NAMED_CHANGES]
    sentences = [
        f"{flip.clip} is answered {flip.answered}, PyTorch says {flip.expected} by {flip.margin:.3g} logits"
        for flip in surest
    ]
    if len(flips) > _NAMED_CHANGES:
        became = Counter(f"{flip.expected} → {flip.answered}" for flip in flips).most_common()
        some = ", ".join(f"{count} × {what}" for what, count in became[:_NAMED_CHANGES])
        more = ", …" if len(became) > _NAMED_CHANGES else ""
        sentences = [f"{len(flips)} answers of which PyTorch is sure changed ({some}{more}): {sentences[0]}"]
    return sentences


def _recall_gains(found: ScoredAnswers, true: ScoredAnswers) -> dict[str, Fraction]:
    """Return by how many points the recall of each class rose, by class name; only classes with clips.

    The values are exact fractions and are rounded only when they are compared with a limit. As floats, 1.1 - 1.0 would
    exceed a limit of 0.1.
    """
    before, after = np.array(true.confusion), np.array(found.confusion)
    hits, clips = np.diag(after - before).tolist(), before.sum(axis=1).tolist()
    return {name: Fraction(100 * more, of) for name, more, of in zip(true.recalls, hits, clips, strict=True) if of}


def finite_softmax(logits: Float32) -> Float32:
    """Return the softmax, or 0 where a logit is not finite. Other limits report those, and zeros do not hide them."""
    with np.errstate(invalid="ignore"):
        probabilities: Float32 = np.nan_to_num(softmax(logits))
    return probabilities


def _quantiles(difference: Float32) -> dict[str, float]:
    """Return quantiles of the absolute values, by the quantile as text; infinity if an answer is not finite."""
    finite = bool(np.isfinite(difference).all())
    errors = np.quantile(np.abs(difference), QUANTILES).tolist() if finite else [float("inf")] * len(QUANTILES)
    return {f"{quantile:g}": error for quantile, error in zip(QUANTILES, errors, strict=True)}


def largest(difference: npt.NDArray[np.float32]) -> float:
    """Return the largest absolute value, or infinity if a number is not finite, so that it exceeds every limit."""
    return float(np.abs(difference).max()) if np.isfinite(difference).all() else float("inf")
