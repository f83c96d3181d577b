"""Measure what rounding costs a model, with a copy of it whose weights have random rounding errors.

The absolute error of an exported block says little, because the same rounding can move the answers of one model a
thousand times further than those of another. The error is therefore compared with the effect of rounding on this model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dfer_deploy.bundles.blocks import encoder_blocks, head_blocks
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.runtimes.predictor import Frames
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.specs import Precision
from dfer_deploy.verification.limits import Rounding

UNIT_ROUNDOFF: dict[Precision, float] = {"fp32": 2.0**-24, "fp16": 2.0**-11}
"""Largest relative error of rounding to the nearest number: IEEE 754's binary32 and binary16."""


_DRAWS = 8
"""Number of random copies of the temporal head. A few clips have few logits, so a single copy could hit or miss them
by chance."""

Model = TypeVar("Model", bound=nn.Module)


def rounding_costs(model: DferClip, frames: Frames) -> dict[Precision, Rounding]:
    """Return how far rounding all matrices to each precision moves the model's answers on clips.

    Args:
        model: it is not changed.
        frames: uint8 [B, T, H, W, 3].
    """
    truth = TorchPredictor(model)
    features = truth.encode(frames)
    logits = truth.classify(features).logits
    costs: dict[Precision, Rounding] = {}
    for precision in UNIT_ROUNDOFF:
        half = (*encoder_blocks(model.spec), *head_blocks(model.spec)) if precision == "fp16" else ()
        moved = TorchPredictor(rounded_copy(model, half))
        of_features = moved.encode(frames) - features
        of_logits = []
        for seed in range(_DRAWS):
            moved.model.temporal_net = rounded_copy(model.temporal_net, half, "temporal_net.", seed)
            of_logits.append(moved.classify(features).logits - logits)
        costs[precision] = Rounding.of(of_features, np.stack(of_logits))
    return costs


def rounded_copy(model: Model, half: Collection[str], prefix: str = "", seed: int = 0) -> Model:
    """Return a copy of the model whose weights are moved at random by at most a rounding error.

    Args:
        half: names of the blocks that are rounded to fp16 (``bundles.blocks``), except their LayerNorm; all else is
            fp32.
        half: names of the blocks that are rounded to fp16 (``bundles.blocks``), but for LayerNorm; all else is to fp32.
        prefix: prefix of the names of a part's weights in the model, for example ``temporal_net.``.
        seed: seed of the random numbers.
    """
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    in_half = tuple(_PREFIXES.get(name) or _numbered(name) for name in half)
    islands = {
        id(weight) for module in moved.modules() if isinstance(module, nn.LayerNorm) for weight in module.parameters()
    }
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            is_half = (prefix + name).startswith(in_half) and id(weight) not in islands
            weight.copy_(rounded(weight, "fp16" if is_half else "fp32", generator))
    return moved


def rounded(values: Tensor, precision: Precision, generator: torch.Generator) -> Tensor:
    """Return float32 values moved at random by at most the precision's unit roundoff, relative to each value."""
    # In double precision, because in fp32 the factor itself would be rounded away.
    error = 2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1
    return (values.cpu().double() * (1 + UNIT_ROUNDOFF[precision] * error)).float().to(values.device)


_PREFIXES = {"patch_embedding": "image_encoder.conv1.", "projection": "image_encoder.proj"}
"""Where the parameters of the blocks without a number are."""


def _numbered(block: str) -> str:
    """Return the prefix of the parameters of a numbered block, such as ``encoder.3`` or ``head.0``."""
    part, index = block.split(".")
    return f"{'image_encoder.transformer.resblocks' if part == 'encoder' else 'temporal_net.blocks'}.{index}."
