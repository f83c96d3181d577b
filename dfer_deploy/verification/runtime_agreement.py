"""Compare different ways of running one bundle with each other, without PyTorch and without data.

Drawn clips can show that a runtime is broken, but not how good a model is; ``verify`` does that.

Without the checkpoint the cost of rounding is unknown, so the limits of logits are absolute, and say little if the
answers barely depend on the clip. Therefore frame features are also compared with how much they differ from frame to
frame. In fp16 they err by 0.002 to 0.014 of that (onnxruntime; tiny models, the reference implementation's checkpoint,
ViT-B/32 with random weights). With the colours or the frames in another order they err by at least 0.98. A drift of the
weights by 0.5 % stays below 0.1 and is not detected here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfer_deploy.clips.reading import Clip
from dfer_deploy.runtimes.predictor import Float32, Predictor
from dfer_deploy.verification.comparison import Collected, largest, limit_failures
from dfer_deploy.verification.limits import Limits

FEATURES = 0.25
"""Largest error of frame features as root mean square, relative to their deviation from their mean over all frames."""


@dataclass(frozen=True)
class Agreement:
    """The comparison of one predictor with the first one.

    Attributes:
        name: name of the predictor.
        encoder_logits: largest change of a logit that its image encoder causes; None if it is not finite.
        head_logits: largest difference of a logit of the head, for the first predictor's features; None if not finite.
        logits: largest difference of a logit of the whole model; None if it is not finite.
        features: error of the frame features relative to their deviation (see ``FEATURES``); None if it is not finite.
        answers_changed: number of clips whose most probable class changed.
        failures: one sentence for each exceeded limit.
    """

    name: str
    encoder_logits: float | None
    head_logits: float | None
    logits: float | None
    features: float | None
    answers_changed: int
    failures: tuple[str, ...]


def agreement(
    predictors: Sequence[Predictor], clips: Clip, limits: Limits, *, time_steps: Sequence[int] = (16, 9, 1)
) -> list[Agreement]:
    """Ask every predictor about the same clips: all at once, one alone, and with fewer frames.

    Args:
        predictors: at least one. All, including the first, are compared with the answers of the first.
        clips: uint8 [N, 16, S, S, 3].
        limits: the accepted differences; those of logits, the head and probabilities are used.
        time_steps: the numbers of frames that are shown.

    Returns:
        One agreement for each predictor, in their order.
    """
    requests = [clips[:, :count] for count in time_steps] + [clips[:1]]
    first = predictors[0]
    truths = []
    for frames in requests:
        features = first.encode(frames)
        truths.append((features, first.classify(features).logits))
    return [_agreement(predictor, requests, truths, limits) for predictor in predictors]


def _agreement(
    predictor: Predictor, requests: Sequence[Clip], truths: Sequence[tuple[Float32, Float32]], limits: Limits
) -> Agreement:
    found, whole_error, changed = Collected(predictor.name), 0.0, 0
    of_all = truths[0][0]
    feature_error = _norm(predictor.encode(requests[0]) - of_all) / max(_norm(of_all - of_all.mean(axis=(0, 1))), 1e-30)
    for frames, (features, expected) in zip(requests, truths, strict=True):
        logits = found.ask(predictor, frames, features, expected)
        whole_error = max(whole_error, largest(logits - expected))
        changed += int((logits.argmax(axis=1) != expected.argmax(axis=1)).sum())
    failures = [f"{predictor.name}: {failure}" for failure in limit_failures(found, whole_error, limits)]
    if not feature_error <= FEATURES:
        failures.append(
            f"{predictor.name}: the frame features err by {feature_error:.2g} of what they differ by from frame to "
            f"frame, at most {FEATURES:g} is accepted"
        )
    return Agreement(
        predictor.name,
        _finite(found.encoder_logits),
        _finite(found.head_logits),
        _finite(whole_error),
        _finite(feature_error),
        changed,
        tuple(failures),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _norm(values: Float32) -> float:
    """Return the Euclidean norm, or infinity if a number is not finite."""
    return float(np.linalg.norm(values.astype(np.float64))) if np.isfinite(values).all() else float("inf")
