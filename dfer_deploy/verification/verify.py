"""Show the same labelled clips to PyTorch and to every way of serving, and judge each.

The checks go from finiteness and shapes over the largest difference of a logit for each graph to what users care about:
UAR and WAR of each, whether they are equivalent or there are too few clips to decide, and every clip whose answer
changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips, in_batches
from dfer_deploy.clips.reading import Clip
from dfer_deploy.console import progress, warn
from dfer_deploy.errors import ClipError, spelled
from dfer_deploy.metrics import Int64
from dfer_deploy.runtimes.predictor import Float32, Frames, Predictor
from dfer_deploy.specs import ModelSpec, Precision, require
from dfer_deploy.verification.baseline import Baseline, Truth, clip_hash
from dfer_deploy.verification.compared_answers import ComparedAnswers, pooled, refuse_again
from dfer_deploy.verification.comparison import Collected, comparison, finite_softmax, largest
from dfer_deploy.verification.folds import EarlierVerification
from dfer_deploy.verification.limits import Limits, Rounding
from dfer_deploy.verification.verification_result import Comparison, ScoredAnswers, scored_answers

FEW_CLIPS = 4
"""Number of clips, the first of the list, on which errors are compared with the cost of rounding. Each clip has 16
frames of features, so more clips would not change the result."""


@dataclass(frozen=True)
class ShownClips:
    """The answers of the truth and the predictors to the same clips: the data behind a result.

    Attributes:
        truth: name of the truth.
        answers: answers of the truth and all predictors.
        frame_features: features of the truth, float32 [N, 16, L].
        logits: logits of the truth, float32 [N, C].
        collected: answers and errors by the predictor's name.
        rounding: what rounding to each precision costs the model on the first clips.
        unreadable: for each clip that could not be read, its name and the reason.
        lost_classes: names of the classes whose listed clips could all not be read.
        first_clips: the first readable clips of the list, at most four, with their frames.
    """

    truth: str
    answers: ComparedAnswers
    frame_features: Float32
    logits: Float32
    collected: dict[str, Collected]
    rounding: dict[Precision, Rounding]
    unreadable: dict[str, str]
    lost_classes: tuple[str, ...]
    first_clips: tuple[tuple[Annotation, Clip], ...]

    @property
    def truth_score(self) -> ScoredAnswers:
        """The score of the truth."""
        of_truth = self.answers
        probabilities = finite_softmax(self.logits)
        return scored_answers(self.truth, of_truth.labels, of_truth.reference, probabilities, of_truth.class_names)

    def comparisons(self, limits: Limits, pool: Sequence[EarlierVerification] = ()) -> tuple[Comparison, ...]:
        """Judge every predictor.

        Args:
            limits: the accepted differences.
            pool: earlier verifications, for example of other folds, whose answers count in the test of equivalence.

        Raises:
            DferDeployError: the pool does not fit.
        """
        once, earlier = self.answers.once, [one.result.answers.once for one in pool]
        if len(once.clips) < len(self.answers.clips):
            again = len(self.answers.clips) - len(once.clips)
            warn(
                f"{again} of the {len(self.answers.clips)} clips have the frames of another one of them; in the "
                "decision each counts once"
            )
        return tuple(
            comparison(
                found,
                self.logits,
                self.answers,
                pooled([once, *earlier], name),
                limits,
                self.rounding[limits.precision],
            )
            for name, found in self.collected.items()
        )

    def baseline(self, checkpoint_sha256: str, spec: ModelSpec) -> Baseline:
        """Return the truth's answers as a baseline to save, for a checkpoint with this hash and this model."""
        clips, hashes = list(self.answers.clips), list(self.answers.clip_hashes)
        return Baseline(
            checkpoint_sha256, spec.to_dict(), clips, hashes, self.frame_features, self.logits, self.rounding
        )

    def list_failures(self, limits: Limits) -> list[str]:
        """Return one sentence for each limit that the list exceeds: too many unreadable clips, or a lost class."""
        lost, listed = len(self.unreadable), len(self.answers.clips) + len(self.unreadable)
        failures = [f"no clip of {name} could be read, so nothing is known of its recall" for name in self.lost_classes]
        if lost > limits.unreadable * listed:
            failures.insert(
                0,
                f"{lost} of {listed} clips could not be read, at most {limits.unreadable:.0%} is accepted",
            )
        return failures


def _ask_all(
    predictors: Sequence[Predictor],
    collected: Mapping[str, Collected],
    same_graphs: Sequence[str],
    frames: Frames,
    expected: tuple[Float32, Float32],
) -> None:
    """Collect every predictor's answers to a batch, and the differences between those that run the same graphs."""
    first: Float32 | None = None
    for predictor in predictors:
        found = collected[predictor.name]
        logits = found.ask(predictor, frames, *expected)
        if predictor.name in same_graphs:
            first = logits if first is None else first
            found.same_graphs = max(found.same_graphs, largest(logits - first))


def _compared_answers(
    class_names: tuple[str, ...],
    read: _Reading,
    collected: Mapping[str, Collected],
    groups: Mapping[str, str] | None,
) -> ComparedAnswers:
    names = tuple(annotation.name for annotation in read.annotations)
    return ComparedAnswers(
        class_names=class_names,
        clips=names,
        clip_hashes=tuple(read.hashes),
        groups=None if groups is None else tuple(groups[name] for name in names),
        labels=np.array([annotation.label for annotation in read.annotations], dtype=np.int64),
        reference=_answers(read.logits),
        candidates={name: _answers(found.logits) for name, found in collected.items()},
    )


def show_clips(
    class_names: tuple[str, ...],
    truth: Truth,
    predictors: Sequence[Predictor],
    clips: LabelledClips,
    *,
    same_graphs: Sequence[str] = (),
    batch_size: int = 4,
    groups: Mapping[str, str] | None = None,
    pool: Sequence[EarlierVerification] = (),
) -> ShownClips:
    """Show every clip to the truth and to all predictors, a batch at a time.

    Args:
        class_names: in the order of the logits.
        truth: PyTorch or a saved baseline.
        predictors: ways of serving, at least one.
        clips: the clips of the annotation lists.
        same_graphs: names of predictors that run the same graphs with onnxruntime on one kind of device. They must
            agree with the first of them.
        batch_size: number of clips in one request.
        groups: the source of every clip, by the clip's name; None if clips are independent.
        pool: earlier verifications; these clips must not occur in them.

    Raises:
        DferDeployError: no clip can be read, the truth is not finite, or a predictor refuses to answer.
    """
    read = _Reading({}, [], [], [], [], [])
    for earlier in pool:
        answers = earlier.result.answers
        read.seen.update(zip(answers.clip_hashes, answers.clips, strict=True))
    collected = {predictor.name: Collected(predictor.name) for predictor in predictors}
    for batch in in_batches(progress(clips, "verify", total=len(clips)), batch_size):
        frames = np.stack([clip for _, clip in batch])
        expected_answer = read.add(truth, [annotation for annotation, _ in batch], frames)
        _ask_all(predictors, collected, same_graphs, frames, expected_answer)
    clips.warn_about_unreadable()
    if not read.annotations:
        raise ClipError(
            f"none of the {len(clips)} clips could be read; are {spelled('data')} and {spelled('data_root')} right?"
        )
    few = np.stack([clip for _, clip in read.first])
    features, expected = np.concatenate(read.features), np.concatenate(read.logits)
    for predictor in predictors:
        collected[predictor.name].errors = _errors(predictor, few, features, expected, batch_size)
    lost = {annotation.label for annotation in clips.annotations} - {found.label for found in read.annotations}
    return ShownClips(
        truth=truth.name,
        answers=_compared_answers(class_names, read, collected, groups),
        frame_features=features,
        logits=expected,
        collected=collected,
        rounding=truth.rounding_costs(few),
        unreadable=dict(clips.unreadable),
        lost_classes=tuple(class_names[label] for label in sorted(lost)),
        first_clips=tuple(read.first),
    )


@dataclass
class _Reading:
    """What the truth has read and answered so far, and the names of all clips seen, by hash."""

    seen: dict[str, str]
    annotations: list[Annotation]
    hashes: list[str]
    features: list[Float32]
    logits: list[Float32]
    first: list[tuple[Annotation, Clip]]

    def add(self, truth: Truth, annotations: list[Annotation], frames: Frames) -> tuple[Float32, Float32]:
        """Ask the truth about a batch and keep its answers, which must be finite."""
        hashes = [clip_hash(clip) for clip in frames]
        refuse_again(self.seen, (annotation.name for annotation in annotations), hashes)
        features, logits = truth.answer(annotations, frames)
        finite = np.isfinite(features).all(axis=(1, 2)) & np.isfinite(logits).all(axis=1)
        require(
            bool(finite.all()),
            f"{truth.name} answers the clip {annotations[int(finite.argmin())].name!r} with numbers that are not "
            "finite, so there is nothing to compare with; look at the checkpoint",
        )
        self.first += list(zip(annotations, frames, strict=True))[: FEW_CLIPS - len(self.first)]
        self.annotations += annotations
        self.hashes += hashes
        self.features.append(features)
        self.logits.append(logits)
        return features, logits


def _answers(logits: Sequence[Float32]) -> Int64:
    answers: Int64 = np.concatenate(logits).argmax(axis=1).astype(np.int64)
    return answers


def _errors(predictor: Predictor, few: Frames, features: Float32, logits: Float32, batch_size: int) -> Rounding:
    """Compare both graphs with the truth on the first clips; ``features`` and ``logits`` are the truth's for all."""
    batches = [slice(start, start + batch_size) for start in range(0, len(few), batch_size)]
    encoded = np.concatenate([predictor.encode(few[batch]) for batch in batches])
    classified = np.concatenate([predictor.classify(features[: len(few)][batch]).logits for batch in batches])
    return Rounding.of(encoded - features[: len(few)], classified - logits[: len(few)])
