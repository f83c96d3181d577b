"""What two ways of running one model may differ by."""

from __future__ import annotations

from dataclasses import dataclass

from dfer_deploy.clips.dataset import MOST_UNREADABLE
from dfer_deploy.specs import Precision, require


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
        points: the margin in percentage points: UAR and WAR may not differ by more on these clips, and are equivalent
            where the true difference does not either, as far as so many clips can tell.
        unreadable: largest share of clips that cannot be read.
        flips: largest share of clips whose answer changes.
        recall_drop: by how many points the recall of a class may fall.
        calibration_rise: by how many points the expected calibration error may rise.
    """

    head_logits: float
    logits: float
    flip_margin: float
    same_graphs: float = 1e-3
    probabilities: float = 1e-4
    points: float = 0.5
    unreadable: float = MOST_UNREADABLE
    flips: float = 1.0
    recall_drop: float = 100.0
    calibration_rise: float = 100.0

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
