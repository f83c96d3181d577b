"""Proves that what is served is what was trained: the same labelled clips through PyTorch and every way of serving.

First finiteness and shapes, then the largest difference of a logit for each graph, then what users care about: UAR and
WAR of each, whether they are equivalent or there are too few clips to tell, and every clip whose answer changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips, in_batches
from dfer_deploy.clips.reading import Clip
from dfer_deploy.console import progress, warn
from dfer_deploy.errors import DferDeployError
from dfer_deploy.metrics import Calibration, Score, calibration, score
from dfer_deploy.runtimes.predictor import Float32, Frames, Predictor
from dfer_deploy.specs import ModelSpec, Precision, require
from dfer_deploy.verification.baseline import Baseline, Truth, clip_hash, save_baseline
from dfer_deploy.verification.comparison import Collected, Comparison, ask, comparison, finite_softmax, largest
from dfer_deploy.verification.folds import ComparedAnswers, EarlierVerification, pooled, refuse_again
from dfer_deploy.verification.limits import Limits, Rounding

FEW_CLIPS = 4
"""On so many clips, the first of the list, errors are held against rounding: each is 16 frames of features, so more
would tell no more."""


@dataclass(frozen=True)
class Verification:
    """The result.

    Attributes:
        truth: name of what was compared with.
        truth_score: its score.
        truth_calibration: its confidence against its accuracy.
        comparisons: one for each way of serving.
        clip_names: as the list gives them, [N].
        clip_hashes: SHA-256 of their frames, [N].
        groups: the source of each clip, [N]; None where clips count as independent.
        unreadable: clips that could not be read, with the reason.
        labels: int64 [N].
        frame_features: the truth's, float32 [N, 16, L].
        logits: the truth's, float32 [N, C].
        limits: what was accepted.
        rounding: what rounding to each precision costs the model on the first clips.
        errors: of every way of serving on the first clips of the list, by its name; a baseline has ``rounding`` from
            the first clips of the list with which it was saved.
        pool_failures: one sentence for each pooled verification that failed.
        lost_classes: names of the classes of which the list has clips and none could be read.
        first_clips: the frames of the first clips of the list, uint8 [at most 4, 16, S, S, 3].
        blocks: what leaves its tolerance where the blocks of the graphs were compared with PyTorch's, in one sentence.
    """

    truth: str
    truth_score: Score
    truth_calibration: Calibration
    comparisons: tuple[Comparison, ...]
    clip_names: tuple[str, ...]
    clip_hashes: tuple[str, ...]
    groups: tuple[str, ...] | None
    unreadable: dict[str, str]
    labels: npt.NDArray[np.int64]
    frame_features: Float32
    logits: Float32
    limits: Limits
    rounding: dict[Precision, Rounding]
    errors: dict[str, Rounding]
    pool_failures: tuple[str, ...]
    lost_classes: tuple[str, ...]
    first_clips: Frames
    blocks: str | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each limit that was left."""
        failures = [] if self.blocks is None else [self.blocks]
        failures += [failure for comparison in self.comparisons for failure in comparison.failures]
        failures += self.pool_failures
        listed = len(self.labels) + len(self.unreadable)
        if len(self.unreadable) > self.limits.unreadable * listed:
            failures.append(
                f"{len(self.unreadable)} of {listed} clips could not be read, at most "
                f"{self.limits.unreadable:.0%} is accepted"
            )
        failures += [
            f"no clip of {name} could be read, so nothing is known of its recall" for name in self.lost_classes
        ]
        return tuple(failures)

    @property
    def undecided(self) -> tuple[str, ...]:
        """One sentence for each question that so few clips leave open."""
        return tuple(sentence for comparison in self.comparisons for sentence in comparison.undecided)


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
    groups: Mapping[str, str] | None = None,
    pool: Sequence[EarlierVerification] = (),
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
        groups: the source of every clip, by its name.
        pool: earlier verifications, for example of other folds, whose answers count towards the equivalence; if one of
            them failed, so does this one.

    Raises:
        DferDeployError: no clip can be read, the truth is not finite, a predictor refuses to
            answer, or the pool does not fit.
    """
    annotations: list[Annotation] = []
    features: list[Float32] = []
    truth_logits: list[Float32] = []
    hashes: list[str] = []
    collected = {predictor.name: Collected() for predictor in predictors}
    few: list[Clip] = []
    seen: dict[str, str] = {}
    for earlier in pool:
        seen |= dict(zip(earlier.answers.clip_hashes, earlier.answers.clips, strict=True))
    for batch in in_batches(progress(clips, "verify", total=len(clips)), batch_size):
        frames = np.stack([clip for _, clip in batch])
        names = [annotation for annotation, _ in batch]
        batch_hashes = [clip_hash(clip) for clip in frames]
        refuse_again(seen, (annotation.name for annotation in names), batch_hashes)
        true_features, true_logits = truth.answer(names, frames)
        finite = np.isfinite(true_features).all(axis=(1, 2)) & np.isfinite(true_logits).all(axis=1)
        require(
            bool(finite.all()),
            f"{truth.name} answers the clip {names[int(finite.argmin())].name!r} with numbers that are not finite, so "
            "there is nothing to compare with; look at the checkpoint",
        )
        few += list(frames[: FEW_CLIPS - len(few)])
        annotations += names
        features.append(true_features)
        truth_logits.append(true_logits)
        hashes += batch_hashes
        first: Float32 | None = None
        for predictor in predictors:
            logits = ask(collected[predictor.name], predictor, frames, true_features, true_logits)
            if predictor.name in same_graphs:
                first = logits if first is None else first
                found = collected[predictor.name]
                found.same_graphs = max(found.same_graphs, largest(logits - first))
    clips.warn_about_unreadable()
    if not annotations:
        raise DferDeployError(f"none of the {len(clips)} clips could be read; are --data and --data-root right?")
    labels = np.array([annotation.label for annotation in annotations], dtype=np.int64)
    expected = np.concatenate(truth_logits)
    frame_features = np.concatenate(features)
    rounding = truth.rounding_costs(np.stack(few))
    errors = {
        predictor.name: _errors(predictor, np.stack(few), frame_features, expected, batch_size)
        for predictor in predictors
    }
    if baseline_file:
        clip_names = [annotation.name for annotation in annotations]
        save_baseline(
            baseline_file,
            Baseline(truth.checkpoint_sha256, spec.to_dict(), clip_names, hashes, frame_features, expected, rounding),
        )
    class_names, answers = spec.prompts.class_names, [earlier.answers.once for earlier in pool]
    compared = ComparedAnswers(
        class_names=class_names,
        clips=tuple(annotation.name for annotation in annotations),
        clip_hashes=tuple(hashes),
        groups=None if groups is None else tuple(groups[annotation.name] for annotation in annotations),
        labels=labels,
        reference=expected.argmax(axis=1),
        candidates={name: np.concatenate(found.logits).argmax(axis=1) for name, found in collected.items()},
    )
    decided_on = compared.once
    if len(decided_on.clips) < len(compared.clips):
        again = len(compared.clips) - len(decided_on.clips)
        warn(
            f"{again} of the {len(compared.clips)} clips have the frames of another one of them; in the decision each "
            "counts once"
        )
    return Verification(
        truth=truth.name,
        truth_score=score(labels, compared.reference, class_names),
        truth_calibration=calibration(labels, finite_softmax(expected)),
        comparisons=tuple(
            _with_failures(
                comparison(name, found, expected, compared, pooled([decided_on, *answers], name), limits),
                limits.rounding_failures(errors[name], rounding[limits.precision]),
            )
            for name, found in collected.items()
        ),
        clip_names=compared.clips,
        clip_hashes=compared.clip_hashes,
        groups=compared.groups,
        unreadable=dict(clips.unreadable),
        labels=labels,
        frame_features=frame_features,
        logits=expected,
        limits=limits,
        rounding=rounding,
        errors=errors,
        pool_failures=tuple(earlier.failure for earlier in pool if earlier.failure is not None),
        lost_classes=tuple(
            class_names[k]
            for k in sorted({annotation.label for annotation in clips.annotations} - set(labels.tolist()))
        ),
        first_clips=np.stack(few),
    )


def _with_failures(comparison: Comparison, failures: Sequence[str]) -> Comparison:
    found = (f"{comparison.name}: {failure}" for failure in failures)
    return replace(comparison, failures=(*found, *comparison.failures))


def _errors(predictor: Predictor, few: Frames, features: Float32, logits: Float32, batch_size: int) -> Rounding:
    """Of both graphs on the first clips, from the truth's frame features and logits of all."""
    batches = [slice(start, start + batch_size) for start in range(0, len(few), batch_size)]
    encoded = np.concatenate([predictor.encode(few[batch]) for batch in batches])
    classified = np.concatenate([predictor.classify(features[: len(few)][batch]).logits for batch in batches])
    return Rounding.of(encoded - features[: len(few)], classified - logits[: len(few)])
