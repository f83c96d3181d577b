"""Proves that what is served is what was trained: the same labelled clips through PyTorch and every way of serving.

First finiteness and shapes, then the largest difference of a logit for each graph, then what users care about: UAR and
WAR of each, and every clip whose answer changed, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dfer_deploy.baseline import Baseline, Truth, clip_hash, save_baseline
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips, in_batches
from dfer_deploy.clips.reading import Clip
from dfer_deploy.console import progress
from dfer_deploy.errors import DferDeployError
from dfer_deploy.metrics import Score, score, softmax
from dfer_deploy.runtimes.predictor import Float32, Predictor
from dfer_deploy.specs import ModelSpec, Precision, require


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
        head_logits: largest difference of a logit of the temporal head, given PyTorch's frame features.
        logits: largest difference of a logit of the whole model.
        flip_margin: an answer may change only where PyTorch's two largest logits are closer than this.
        same_graphs: largest difference of a logit between two ways of running the very same graphs with onnxruntime on
            one kind of device.
        probabilities: largest difference of a probability from the softmax of the logits beside it.
        points: largest difference of UAR and of WAR, in percentage points.
        unreadable: largest share of clips that cannot be read.
    """

    head_logits: float
    logits: float
    flip_margin: float
    same_graphs: float = 1e-3
    probabilities: float = 1e-4
    points: float = 0.5
    unreadable: float = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, f"the limit {name} is {value}, expected a number of at least 0")


LIMITS: dict[Precision, Limits] = {
    # Two right implementations in fp32 differ by the order of additions: some 1e-4 on a model with large features.
    "fp32": Limits(head_logits=0.01, logits=0.01, flip_margin=0.02),
    # fp16 rounds every activation of the encoder to 11 bits: about 0.01 of a logit on ordinary weights, up to 1 where
    # features are amplified. The head, whose islands are fp32, stays within a few thousandths.
    "fp16": Limits(head_logits=0.1, logits=2.5, flip_margin=1.0),
}


@dataclass(frozen=True)
class Flip:
    """A clip whose answer is another one than PyTorch's."""

    clip: str
    label: str
    expected: str
    answered: str
    margin: float
    """Difference of PyTorch's two largest logits: a small one was a close call."""


@dataclass(frozen=True)
class Comparison:
    """One way of serving against the truth.

    Attributes:
        name: of the predictor.
        score: its UAR, WAR and confusion matrix.
        encoder_logits: largest change of a logit that the image encoder causes.
        head_logits: largest difference of a logit of the head, given the truth's frame features.
        logits: largest difference of a logit of the whole model.
        flips: clips whose answer changed.
        failures: sentences, one for each limit that was left.
    """

    name: str
    score: Score
    encoder_logits: float
    head_logits: float
    logits: float
    flips: tuple[Flip, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """The result.

    Attributes:
        truth: name of what was compared with.
        truth_score: its score.
        comparisons: one for each way of serving.
        unreadable: clips that could not be read, with the reason.
        labels: int64 [N].
        frame_features: the truth's, float32 [N, 16, L].
        logits: the truth's, float32 [N, C].
        limits: what was accepted.
    """

    truth: str
    truth_score: Score
    comparisons: tuple[Comparison, ...]
    unreadable: dict[str, str]
    labels: npt.NDArray[np.int64]
    frame_features: Float32
    logits: Float32
    limits: Limits

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each limit that was left."""
        failures = [failure for comparison in self.comparisons for failure in comparison.failures]
        listed = len(self.labels) + len(self.unreadable)
        if len(self.unreadable) > self.limits.unreadable * listed:
            failures.append(
                f"{len(self.unreadable)} of {listed} clips could not be read, at most "
                f"{self.limits.unreadable:.0%} is accepted"
            )
        return tuple(failures)


@dataclass
class _Collected:
    logits: list[Float32] = field(default_factory=list)
    encoder_logits: float = 0.0
    head_logits: float = 0.0
    probabilities: float = 0.0
    same_graphs: float = 0.0


def verify(
    spec: ModelSpec,
    truth: Truth,
    predictors: Sequence[Predictor],
    clips: LabelledClips,
    limits: Limits,
    *,
    same_graphs: Sequence[str] = (),
    batch_size: int = 4,
    baseline_file: Path | None = None,
) -> Verification:
    """Shows every clip to the truth and to all predictors, a batch at a time.

    Args:
        spec: the model.
        truth: PyTorch or a saved baseline.
        predictors: ways of serving, at least one.
        clips: the labelled list.
        limits: what is accepted.
        same_graphs: names of predictors that run the very same graphs with onnxruntime on one kind of device, so they
            must agree with the first of them.
        batch_size: clips in one request.
        baseline_file: save the truth's answers here.

    Raises:
        DferDeployError: no clip can be read, or a predictor refuses to answer.
    """
    annotations: list[Annotation] = []
    features: list[Float32] = []
    truth_logits: list[Float32] = []
    hashes: list[str] = []
    collected = {predictor.name: _Collected() for predictor in predictors}
    for batch in in_batches(progress(clips, "verify", total=len(clips)), batch_size):
        frames = np.stack([clip for _, clip in batch])
        names = [annotation for annotation, _ in batch]
        true_features, true_logits = truth.answer(names, frames)
        annotations += names
        features.append(true_features)
        truth_logits.append(true_logits)
        hashes += [clip_hash(clip) for clip in frames] if baseline_file else []
        first: Float32 | None = None
        for predictor in predictors:
            logits = _compare(collected[predictor.name], predictor, frames, true_features, true_logits)
            if predictor.name in same_graphs:
                first = logits if first is None else first
                found = collected[predictor.name]
                found.same_graphs = max(found.same_graphs, _largest(logits - first))
    clips.warn_about_unreadable()
    if not annotations:
        raise DferDeployError(f"none of the {len(clips)} clips could be read; are --data and --data-root right?")
    labels = np.array([annotation.label for annotation in annotations], dtype=np.int64)
    expected = np.concatenate(truth_logits)
    frame_features = np.concatenate(features)
    if baseline_file:
        clip_names = [annotation.name for annotation in annotations]
        save_baseline(
            baseline_file,
            Baseline(truth.checkpoint_sha256, spec.to_dict(), clip_names, hashes, frame_features, expected),
        )
    class_names = spec.prompts.class_names
    return Verification(
        truth=truth.name,
        truth_score=score(labels, expected.argmax(axis=1), class_names),
        comparisons=tuple(
            _comparison(name, found, expected, labels, annotations, class_names, limits)
            for name, found in collected.items()
        ),
        unreadable=dict(clips.unreadable),
        labels=labels,
        frame_features=frame_features,
        logits=expected,
        limits=limits,
    )


def _compare(
    found: _Collected, predictor: Predictor, frames: Clip, true_features: Float32, true_logits: Float32
) -> Float32:
    """Asks for the whole and for the head alone; gives the logits of the whole."""
    whole, head = predictor.predict(frames), predictor.classify(true_features)
    found.logits.append(whole.logits)
    found.encoder_logits = max(found.encoder_logits, _largest(whole.logits - head.logits))
    found.head_logits = max(found.head_logits, _largest(head.logits - true_logits))
    for answer in (whole, head):
        found.probabilities = max(found.probabilities, _largest(answer.probabilities - softmax(answer.logits)))
    return whole.logits


def _comparison(
    name: str,
    found: _Collected,
    expected: Float32,
    labels: npt.NDArray[np.int64],
    annotations: list[Annotation],
    class_names: tuple[str, ...],
    limits: Limits,
) -> Comparison:
    logits = np.concatenate(found.logits)
    difference = _largest(logits - expected)
    found_score = score(labels, logits.argmax(axis=1), class_names)
    true_score = score(labels, expected.argmax(axis=1), class_names)
    checks = [
        ("a logit of the temporal head", found.head_logits, limits.head_logits),
        ("a logit", difference, limits.logits),
        ("a logit against onnxruntime in process", found.same_graphs, limits.same_graphs),
        ("a probability against the softmax of its logits", found.probabilities, limits.probabilities),
        ("UAR", abs(found_score.uar - true_score.uar), limits.points),
        ("WAR", abs(found_score.war - true_score.war), limits.points),
    ]
    failures = [
        f"{name}: {what} differs by {value:.3g}{' points' if what.isupper() else ''}, at most {limit:g} is accepted"
        for what, value, limit in checks
        if not value <= limit
    ]
    top_two = np.sort(expected, axis=1)[:, -2:]
    flips = [
        Flip(
            clip=annotations[row].name,
            label=class_names[labels[row]],
            expected=class_names[expected[row].argmax()],
            answered=class_names[logits[row].argmax()],
            margin=float(top_two[row, 1] - top_two[row, 0]),
        )
        for row in np.flatnonzero(logits.argmax(axis=1) != expected.argmax(axis=1))
    ]
    failures += [
        f"{name}: {flip.clip} is answered {flip.answered}, PyTorch says {flip.expected} by {flip.margin:.3g} logits"
        for flip in flips
        if flip.margin > limits.flip_margin
    ]
    return Comparison(
        name, found_score, found.encoder_logits, found.head_logits, difference, tuple(flips), tuple(failures)
    )


def _largest(difference: Float32) -> float:
    """The largest absolute value; infinity where a number is not finite, so that it fails every limit."""
    return float(np.abs(difference).max()) if np.isfinite(difference).all() else float("inf")
