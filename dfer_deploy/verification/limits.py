"""What two ways of running one model may differ by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.dataset import MAX_UNREADABLE
from dfer_deploy.specs import Precision, require
from dfer_deploy.verification.bounds import LARGEST_LOGIT_ERROR, check_between

ROUNDINGS: dict[Precision, float] = {"fp32": 30.0, "fp16": 4.0}
"""Largest error, in multiples of what rounding costs the same model (``dfer_deploy.verification.rounding``).

Measured with onnxruntime on a CPU, on tiny models with ordinary and with sharp attention at depth 0 to 3, the reference
implementation's checkpoint, and ViT-B/32 with random weights: right exports err by up to 2.8 roundings in fp16, and by
up to 4.7 in fp32, where additions round too. Matrices that drifted by 0.5 % at random err by at least 5.6 roundings in
fp16 and by 1000 in fp32. The fp16 graphs in PyTorch, which rounds every value between two operators, err by
up to 1.8; a TensorRT engine was never measured."""


@dataclass(frozen=True)
class Rounding:
    """Errors on a few clips, as root mean squares: what rounding costs a model, or what a way of serving does to it.

    Attributes:
        features: of a frame feature.
        head_logits: of a logit of the temporal head, given PyTorch's frame features.
    """

    features: float
    head_logits: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, f"the error {name} is {value}, expected a number of at least 0")

    @classmethod
    def of(cls, features: npt.NDArray[np.float32], head_logits: npt.NDArray[np.float32]) -> Rounding:
        """From arrays of differences; infinite where one is not finite, so that it leaves every limit."""
        return cls(*(_root_mean_square(errors) for errors in (features, head_logits)))

    def multiples_of(self, cost: Rounding) -> float:
        """The larger of both errors in multiples of ``cost``'s; infinite where one of the four is."""
        pairs = list(zip(vars(self).values(), vars(cost).values(), strict=True))
        return max(error / max(one, 1e-30) if one < math.inf else math.inf for error, one in pairs)


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    The first limits are in logits and say what a user may see. How much of a logit depends on the clip at all differs
    from model to model, so errors are held against what rounding to ``precision`` costs this model, too.

    Attributes:
        precision: of the graphs; at most ``roundings`` times what rounding to it costs is accepted.
        head_logits: largest difference of a logit of the temporal head, given PyTorch's frame features.
        logits: largest difference of a logit of the whole model.
        flip_margin: an answer may change only where PyTorch's two largest logits are closer than this.
        same_graphs: largest difference of a logit between two ways of running the very same graphs with onnxruntime on
            one kind of device.
        probabilities: largest difference of a probability from the softmax of the logits beside it.
        points: the margin in percentage points: UAR and WAR may not differ by more on these clips, and are equivalent
            where the true difference does not either, as far as so many clips can tell.
        unreadable: largest share of clips that cannot be read.
        flips: largest share of clips whose answer changes.
        recall_drop: by how many points the recall of a class may fall.
        calibration_rise: by how many points the expected calibration error may rise.
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
                check_between(f"limits.{name}", value, LARGEST_LOGIT_ERROR)

    def rounding_failures(self, found: Rounding, rounding: Rounding) -> list[str]:
        """What errs by more than rounding explains, one part of a sentence each.

        Args:
            found: the errors of a way of serving.
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
            # What rounding moves without bounds explains nothing.
            if not error <= times * cost < math.inf
        ]


def _root_mean_square(errors: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(errors, dtype=np.float64).mean())) if np.isfinite(errors).all() else math.inf


LIMITS: dict[Precision, Limits] = {
    # Two right implementations in fp32 differ by the order of additions: some 1e-4 on a model with large features.
    "fp32": Limits("fp32", head_logits=0.01, logits=0.01, flip_margin=0.02, roundings=ROUNDINGS["fp32"]),
    # fp16 rounds every activation of the encoder to 11 bits: about 0.01 of a logit on ordinary weights, up to 1 where
    # features are amplified. The head, whose islands are fp32, stays within a few thousandths.
    "fp16": Limits("fp16", head_logits=0.1, logits=2.5, flip_margin=1.0, roundings=ROUNDINGS["fp16"]),
}
