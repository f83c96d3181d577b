"""The accepted differences between two ways of running one model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.dataset import MAX_UNREADABLE
from dfer_deploy.specs import Precision, require
from dfer_deploy.verification.bounds import MAX_LOGIT_ERROR, check_between

ROUNDINGS: dict[Precision, float] = {"fp32": 30.0, "fp16": 4.0}
"""Largest error, in multiples of what rounding costs the same model (``dfer_deploy.verification.rounding``).

Measured with onnxruntime on a CPU, on tiny models with ordinary and with sharp attention at depth 0 to 3, the
reference implementation's checkpoint, and ViT-B/32 with random weights. Right exports err by up to 2.8 roundings in
fp16, and by up to 4.7 in fp32, where additions round too. Matrices with a random drift of 0.5 % err by at least 5.6
roundings in fp16 and by 1000 in fp32. The fp16 graphs in PyTorch, which rounds every value between two operators,
err by up to 1.8. The factors are not validated for TensorRT engines."""


@dataclass(frozen=True)
class Rounding:
    """Errors on a few clips, as root mean squares: the cost of rounding a model, or the error of a way of serving.

    Attributes:
        features: error of a frame feature.
        head_logits: error of a logit of the temporal head, for PyTorch's frame features.
    """

    features: float
    head_logits: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, f"the error {name} is {value}, expected a number of at least 0")

    @classmethod
    def of(cls, features: npt.NDArray[np.float32], head_logits: npt.NDArray[np.float32]) -> Rounding:
        """Compute the errors from arrays of differences; infinite if one is not finite, so that no limit is kept."""
        return cls(*(_root_mean_square(errors) for errors in (features, head_logits)))

    def multiples_of(self, cost: Rounding) -> float:
        """Return the larger of both errors in multiples of ``cost``'s; infinite if one of the four is infinite."""
        pairs = list(zip(vars(self).values(), vars(cost).values(), strict=True))
        return max(error / max(one, 1e-30) if one < math.inf else math.inf for error, one in pairs)


@dataclass(frozen=True)
class Limits:
    """The limits that a way of serving must keep.

    The first limits are in logits and bound what a user may see. How much of a logit depends on the clip at all differs
    between models, so errors are also compared with what rounding to ``precision`` costs this model.

    Attributes:
        precision: precision of the graphs.
        head_logits: largest difference of a logit of the temporal head, for PyTorch's frame features.
        logits: largest difference of a logit of the whole model.
        flip_margin: an answer may change only if PyTorch's two largest logits are closer than this.
        same_graphs: largest difference of a logit between two ways of running the same graphs with onnxruntime on one
            kind of device.
        probabilities: largest difference of a probability from the softmax of the logits beside it.
        points: the margin in percentage points. UAR and WAR must not differ by more on these clips. They are equivalent
            if the confidence intervals of the true differences lie within it.
        unreadable: largest share of clips that cannot be read, in [0, 1].
        flips: largest share of clips whose answer changes, in [0, 1].
        recall_drop: largest fall of the recall of a class, in percentage points.
        calibration_rise: largest rise of the expected calibration error, in percentage points.
        roundings: largest error in multiples of what rounding costs the model; see ``ROUNDINGS``.
    """

    precision: Precision
    head_logits: float
    logits: float
    flip_margin: float
    roundings: float
    same_graphs: float = 1e-3
    probabilities: float = 1e-4
    points: float = 0.5
    unreadable: float = MAX_UNREADABLE
    flips: float = 1.0
    recall_drop: float = 100.0
    calibration_rise: float = 100.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "precision":
                check_between(f"limits.{name}", value, MAX_LOGIT_ERROR)

    def rounding_failures(self, found: Rounding, rounding: Rounding) -> list[str]:
        """Return the errors that rounding does not explain, each as a part of a sentence.

        Args:
            found: errors of a way of serving.
            rounding: what rounding costs the model.
        """
        times = self.roundings
        return [
            f"{what} differ by {error:.2g} in the root mean square, rounding to {self.precision} explains at most "
            f"{times * cost:.2g}"
            for what, error, cost in (
                ("frame features", found.features, rounding.features),
                ("logits of the temporal head", found.head_logits, rounding.head_logits),
            )
            # An infinite cost of rounding explains nothing.
            if not error <= times * cost < math.inf
        ]


def _root_mean_square(errors: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(errors, dtype=np.float64).mean())) if np.isfinite(errors).all() else math.inf


LIMITS: dict[Precision, Limits] = {
    # Two right implementations in fp32 differ by the order of additions: about 1e-4 for a model with large features.
    "fp32": Limits("fp32", head_logits=0.01, logits=0.01, flip_margin=0.02, roundings=ROUNDINGS["fp32"]),
    # fp16 rounds every activation of the encoder to 11 bits: about 0.01 of a logit with ordinary weights, up to 1 if
    # features are amplified. The head, parts of which stay fp32, errs by a few thousandths.
    "fp16": Limits("fp16", head_logits=0.1, logits=2.5, flip_margin=1.0, roundings=ROUNDINGS["fp16"]),
}
