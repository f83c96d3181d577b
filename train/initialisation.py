"""Starting weights of a model without pretrained ones, so that a few minutes of training are enough.

A vision transformer with random weights spends most of its first epochs on finding out that pixels are correlated and
that places matter. Both can be told to it: the patch embedding starts as a whitening of the data's own patches (as the
first layer in Coates and Ng, "Learning Feature Representations with K-means", 2012, and in Jordan, "94 % on CIFAR-10 in
3.29 Seconds on a Single GPU", 2024), and positions start as different as patches are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dfer_deploy.model.clip import clip_spec_from_open_clip, pretrained_clip
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.model.temporal import TemporalTransformer
from dfer_deploy.specs import ClipSpec, ModelSpec
from dfer_deploy.train.data import TrainingClips
from dfer_deploy.train.model_recipe import ModelRecipe

_VARIANCE_FLOOR = 0.05
"""Share of the mean variance that is added to every principal component, so that noise is not amplified."""

_POSITION_SCALE = 0.7
"""Standard deviation of the positions; that of the whitened patches is about as large."""

_TEMPORAL_SCALE = 0.05
"""Factor on class token and positions of the temporal model, which are drawn for features of pretrained CLIP's size."""


_EXAMPLE_FRAMES = 1024


def model_spec(recipe: ModelRecipe) -> ModelSpec:
    """The sizes and texts of a recipe's model.

    Raises:
        DferDeployError: open_clip does not know the name, or it is not a plain CLIP.
    """
    clip = recipe.clip or (ClipSpec() if recipe.open_clip is None else clip_spec_from_open_clip(recipe.open_clip))
    return ModelSpec(prompts=recipe.prompts, clip=clip, temporal=recipe.temporal)


def starting_model(recipe: ModelRecipe, spec: ModelSpec, clips: TrainingClips) -> DferClip:
    """The model before its first step; uses torch's global random generator.

    Raises:
        DferDeployError: the pretrained weights cannot be had.
    """
    if recipe.open_clip is not None and recipe.pretrained:
        return DferClip(spec, pretrained_clip(recipe.open_clip, recipe.pretrained))
    model = DferClip(spec)
    if recipe.fast_start:
        frames = torch.from_numpy(clips.example_frames(_EXAMPLE_FRAMES))
        fast_start(model, images_from_frames(frames.unsqueeze(0))[0])
    return model


@torch.no_grad()
def fast_start(model: DferClip, images: Tensor) -> None:
    """Overwrites patch embedding, positions and temporal tokens.

    Uses torch's global random generator.

    Args:
        model: with random weights, on the CPU.
        images: unchanged training frames, float32 [N, 3, H, W] in [0, 1]; N of a few hundred is enough.
    """
    encoder = model.image_encoder
    weight = encoder.conv1.weight
    width, _, patch, _ = weight.shape
    patches = F.unfold(images, patch, stride=patch)  # [N, 3·patch², places]
    mean = patches.mean(dim=0)
    centred = (patches - mean).transpose(0, 1).flatten(1)
    variances, directions = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    # The largest come last. A patch of fewer pixels than the width leaves the other filters as they are.
    count = min(width, len(variances))
    variances, directions = variances.flip(0)[:count], directions.flip(1)[:, :count]
    filters = (directions / (variances + _VARIANCE_FLOOR * variances.mean()).sqrt()).T
    weight[:count] = filters.view(count, *weight.shape[1:])
    positions = encoder.positional_embedding[1:]
    positions.normal_(std=_POSITION_SCALE)
    positions[:, :count] -= (filters @ mean).T
    if isinstance(model.temporal_net, TemporalTransformer):
        model.temporal_net.cls_token.mul_(_TEMPORAL_SCALE)
        model.temporal_net.pos_embedding.mul_(_TEMPORAL_SCALE)
