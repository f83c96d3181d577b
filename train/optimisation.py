"""Optimiser and learning-rate schedule (paper, section 4.1: SGD, three rates, MultiStepLR)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dfer_deploy.train.optim_recipe import OptimRecipe


def build_optimizer(parts: Mapping[str, Sequence[nn.Parameter]], recipe: OptimRecipe) -> torch.optim.Optimizer:
    """Build an optimiser with one parameter group for each trained part, with its name and its own rate.

    Args:
        parts: trained parameters by ``temporal``, ``image_encoder``, ``prompts`` and ``head``; at least one part.
        recipe: optimiser and rates.
    """
    rates = {
        "temporal": recipe.lr_temporal,
        "image_encoder": recipe.lr_image_encoder,
        "prompts": recipe.lr_prompts,
        "head": recipe.lr_head,
    }
    groups = [
        {"name": name, "params": list(parts[name]), "lr": rate} for name, rate in rates.items() if parts.get(name)
    ]
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: OptimRecipe, steps_per_epoch: int) -> LambdaLR:
    """Build a schedule that is stepped after every batch and scales all rates alike."""
    return LambdaLR(optimizer, lambda step: rate_factor(step / steps_per_epoch, recipe))


def rate_factor(epoch: float, recipe: OptimRecipe) -> float:
    """Return the factor of the peak rates at a time.

    Args:
        epoch: time since the start in epochs, with fractions.
        recipe: schedule, milestones and warm-up.
    """
    # The shift by a small step avoids wasting the first step of the warm-up with a rate of 0.
    warmup = min(1.0, (epoch + 0.01) / recipe.warmup_epochs) if recipe.warmup_epochs else 1.0
    if recipe.schedule == "multistep":
        passed = sum(epoch >= milestone for milestone in recipe.milestones)
        return warmup * float(recipe.gamma**passed)
    left = max(1e-9, recipe.epochs - recipe.warmup_epochs)
    share = min(1.0, max(0.0, epoch - recipe.warmup_epochs) / left)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * share))
