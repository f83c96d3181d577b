"""The part of a recipe that says how the weights move."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from dfer_deploy.specs import MAX_FRAMES, require


@dataclass(frozen=True)
class OptimRecipe:
    """How the weights move. The defaults are the paper's (section 4.1); the text encoder never moves.

    Attributes:
        name: ``sgd`` with momentum, or ``adamw``.
        lr_image_encoder, lr_temporal, lr_prompts: peak learning rates of the three parts.
        momentum: of SGD.
        weight_decay: of either.
        epochs: passes over the training list.
        batch_size: clips in a step.
        schedule: ``multistep`` multiplies the rates by ``gamma`` at the ``milestones``; ``cosine`` lets them fall to 0.
        milestones: epochs, for ``multistep``.
        gamma: for ``multistep``.
        warmup_epochs: epochs (fractions allowed) over which the rates rise linearly from 0.
        clip_norm: largest norm of the gradient, None for no limit.
        short_epochs: so many first epochs see clips of fewer frames. From scratch, seeing more clips teaches the image
            encoder faster than seeing more frames of each; the temporal model then needs the last epochs.
        short_frames: number of frames in these.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr_image_encoder: float = 1e-5
    lr_temporal: float = 1e-2
    lr_prompts: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 50
    batch_size: int = 48
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[int, ...] = (30, 40)
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    short_epochs: int = 0
    short_frames: int = 4

    def __post_init__(self) -> None:
        for name in ("lr_image_encoder", "lr_temporal", "lr_prompts", "momentum", "weight_decay", "warmup_epochs"):
            require(getattr(self, name) >= 0, f"optim.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) > 0, f"optim.{name} is {getattr(self, name)}, expected at least 1")
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
        """The same course in another number of epochs: warm-up, milestones and short epochs keep their shares."""
        share = epochs / self.epochs
        return dataclasses.replace(
            self,
            epochs=epochs,
            milestones=tuple(max(1, round(milestone * share)) for milestone in self.milestones),
            warmup_epochs=self.warmup_epochs * share,
            short_epochs=round(self.short_epochs * share),
        )
