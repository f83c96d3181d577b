"""The part of a recipe that defines the optimisation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from dfer_deploy.specs import MAX_FRAMES, require


@dataclass(frozen=True)
class OptimRecipe:
    """The settings of the optimisation. The defaults are the paper's (section 4.1). The text encoder is never trained.

    Attributes:
        name: ``sgd`` with momentum, or ``adamw``.
        lr_image_encoder, lr_temporal, lr_prompts, lr_head: peak learning rates of the parts. The rate of a part that
            the strategy does not train is ignored.
        momentum: momentum of SGD, less than 1.
        weight_decay: weight decay of either optimiser.
        epochs: number of passes over the training list.
        batch_size: number of clips in a step, over all processes and accumulated parts together.
        accumulate: number of parts into which a step is divided, one after the other. The step is the same to rounding
            and needs less memory. If contexts are trained, the text transformer runs once for every part.
        balanced: draw clips so that every class is shown equally often.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al., CVPR 2016).
        schedule: ``multistep`` multiplies the rates by ``gamma`` at the ``milestones``; ``cosine`` lets them fall to 0.
        milestones: epochs for ``multistep``; positive and ascending.
        gamma: factor for ``multistep``.
        warmup_epochs: epochs (fractions allowed) over which the rates rise linearly from 0.
        clip_norm: largest norm of the gradient; None for no limit.
        short_epochs: number of first epochs with fewer frames per clip. From scratch, seeing more clips trains the
            image encoder faster than seeing more frames of each. The temporal model then needs the last epochs.
        short_frames: number of frames per clip in these epochs.
        ema_decay: decay of an exponential moving average of the weights, which is then scored and written: a step moves
            it by 1 − ``ema_decay`` of the way. None for no average.
        precision: precision of the matrix products. ``bf16`` and ``fp16`` are autocast: weights, sums and the loss stay
            in fp32, and fp16 scales the loss. A CPU supports only ``fp32`` and ``bf16``.
        checkpoint_activations: recompute the activations of the image encoder's blocks in the backward pass instead of
            keeping them (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr_image_encoder: float = 1e-5
    lr_temporal: float = 1e-2
    lr_prompts: float = 1e-3
    lr_head: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 50
    batch_size: int = 48
    accumulate: int = 1
    balanced: bool = False
    label_smoothing: float = 0.0
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[int, ...] = (30, 40)
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    short_epochs: int = 0
    short_frames: int = 4
    ema_decay: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        rates = ("lr_image_encoder", "lr_temporal", "lr_prompts", "lr_head")
        for name in (*rates, "momentum", "weight_decay", "warmup_epochs"):
            require(getattr(self, name) >= 0, f"optim.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("epochs", "batch_size", "accumulate"):
            require(getattr(self, name) > 0, f"optim.{name} is {getattr(self, name)}, expected at least 1")
        require(
            self.accumulate <= self.batch_size,
            f"optim.accumulate is {self.accumulate} and optim.batch_size {self.batch_size}, expected at least a clip "
            "in every part; batch_size counts the clips of all parts",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"optim.label_smoothing is {self.label_smoothing}, expected 0 or more and less than 1",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"optim.ema_decay is {self.ema_decay}, expected more than 0 and less than 1, such as 0.999",
        )
        require(self.momentum < 1, f"optim.momentum is {self.momentum}, expected 0 or more and less than 1")
        require(
            all(milestone > 0 for milestone in self.milestones) and list(self.milestones) == sorted(self.milestones),
            f"optim.milestones is {list(self.milestones)}, expected rising numbers of epochs, from 1",
        )
        require(self.short_epochs >= 0, f"optim.short_epochs is {self.short_epochs}, expected 0 or more")
        require(
            1 <= self.short_frames <= MAX_FRAMES,
            f"optim.short_frames is {self.short_frames}, expected 1 to {MAX_FRAMES}",
        )
        require(self.gamma > 0, f"optim.gamma is {self.gamma}, expected a positive number")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm is {self.clip_norm}, expected a positive number",
        )

    def with_epochs(self, epochs: int) -> OptimRecipe:
        """Return the same course with other epochs: warm-up, milestones and short epochs keep their shares."""
        share = epochs / self.epochs
        return dataclasses.replace(
            self,
            epochs=epochs,
            milestones=tuple(max(1, round(milestone * share)) for milestone in self.milestones),
            warmup_epochs=self.warmup_epochs * share,
            short_epochs=round(self.short_epochs * share),
        )
