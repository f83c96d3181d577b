"""Whether different ways of running one bundle give the same answers, where there is neither PyTorch nor data.

Drawn clips show a broken runtime, not how good a model is: for that there is ``verify``.

Without the checkpoint nobody knows what rounding costs the model, so the limits of logits are absolute, and say little
where answers barely depend on the clip. Therefore frame features are also compared with how much they differ from frame
to frame. In fp16 they err by 0.002 to 0.014 of that (onnxruntime; tiny models, the reference implementation's
checkpoint, ViT-B/32 with random weights); with the colours or the frames in another order, by at least 0.98. A drift of
the weights by 0.5 % is below 0.1 and is not seen here.
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
"""Largest error of frame features, as root mean square, beside their own deviation from their mean over all frames."""


@dataclass(frozen=True)
class Agreement:
    """One predictor against the first one.

    Attributes:
        name: of the predictor.
        encoder_logits: largest change of a logit that its image encoder causes; None where it is not finite.
        head_logits: largest difference of a logit of the head, given the first one's frame features; None likewise.
        logits: largest difference of a logit of the whole model; None likewise.
        features: error of the frame features beside their deviation, see ``FEATURES``; None likewise.
        answers_changed: clips whose most probable class is another one.
        failures: sentences, one for each limit that was left.
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
    """Asks every predictor about the same clips: all at once, one alone, and with fewer frames.

    Args:
        predictors: the first one is what the others, and itself, are held against; at least one.
        clips: uint8 [N, 16, S, S, 3].
        limits: what is accepted; those of logits, the head and probabilities count.
        time_steps: how many of the frames are shown.

    Returns:
        One for each predictor, in their order.
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
    """Euclidean; infinity where a number is not finite."""
    return float(np.linalg.norm(values.astype(np.float64))) if np.isfinite(values).all() else float("inf")
