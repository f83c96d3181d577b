"""The model before its first step: sizes and texts of the recipe, starting weights, and frozen parts.

Without pretrained weights, ``fast_start`` chooses starting weights with which a few minutes of training are enough. A
vision transformer with random weights needs most of its first epochs to learn that pixels are correlated and that
positions matter. ``fast_start`` provides both. The patch embedding starts as a whitening of the data's own patches (as
the first layer in Coates and Ng, "Learning Feature Representations with K-means", 2012, and in Jordan, "94 % on
CIFAR-10 in 3.29 Seconds on a Single GPU", 2024), and positions start as different as patches are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfer_deploy.checkpoints.checkpoint import holds_dfer_clip, load_checkpoint
from dfer_deploy.checkpoints.weight_file import clip_from_file
from dfer_deploy.console import step
from dfer_deploy.model.clip import clip_spec_from_open_clip, pretrained_clip
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.model.temporal import TemporalTransformer
from dfer_deploy.specs import ClipSpec, ModelSpec
from dfer_deploy.train.data import TrainingClips
from dfer_deploy.train.descriptors import descriptors_for, read_descriptors
from dfer_deploy.train.model_recipe import STRATEGIES, ModelRecipe, Part, Strategy
from dfer_deploy.train.starting_weights import take_weights

_VARIANCE_FLOOR = 0.05
"""Share of the mean variance that is added to every principal component, so that noise is not amplified."""

_POSITION_SCALE = 0.7
"""Standard deviation of the positions; that of the whitened patches is about as large."""

_TEMPORAL_SCALE = 0.05
"""Factor for the temporal model's class token and positions, whose usual size suits the features of pretrained CLIP."""


_EXAMPLE_FRAMES = 1024
"""Number of training frames from which the whitening is computed."""


def model_spec(recipe: ModelRecipe) -> ModelSpec:
    """Return the sizes and texts of a recipe's model, as its strategy uses them.

    Raises:
        DferDeployError: open_clip does not know the model, it is not a plain CLIP, or the prompts file cannot be used.
    """
    clip = recipe.clip or (ClipSpec() if recipe.open_clip is None else clip_spec_from_open_clip(recipe.open_clip))
    parts = STRATEGIES[recipe.strategy]
    prompts = replace(recipe.prompts, class_texts=_class_texts(recipe))
    return ModelSpec(
        prompts=prompts if parts.contexts else replace(prompts, contexts=0),
        clip=clip,
        temporal=recipe.temporal if parts.temporal else replace(recipe.temporal, depth=0),
        classifier=parts.classifier,
    )


def trainable_parts(model: DferClip, strategy: Strategy) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that are trained, by part; freeze all others.

    The keys are among ``temporal``, ``image_encoder``, ``prompts`` (contexts, and the network that shifts them) and
    ``head``. A part without parameters is omitted, so the result for ``zero_shot`` is empty.
    """
    model.requires_grad_(False)
    modules: dict[Part, nn.Module | None] = {
        "temporal": model.temporal_net,
        "image_encoder": model.image_encoder,
        "prompts": model.prompt_learner,
        "head": model.head,
    }
    parts = {}
    for name in STRATEGIES[strategy].trained:
        module = modules[name]
        parameters = [] if module is None else [p for p in module.parameters() if p.numel()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        if parameters:
            parts[str(name)] = parameters
    return parts


def starting_model(recipe: ModelRecipe, spec: ModelSpec, clips: TrainingClips | None) -> DferClip:
    """Return the model before its first step.

    Uses torch's global random generator.

    Args:
        recipe: the recipe, which names the source of the weights.
        spec: the model's specification.
        clips: the clips that ``fast_start`` uses; may be None without it.

    Raises:
        DferDeployError: the pretrained weights are not available or do not fit.
    """
    if recipe.pretrained_is_file:
        model = _model_from_file(spec, Path(recipe.pretrained))
    elif recipe.open_clip is not None and recipe.pretrained:
        model = DferClip(spec, pretrained_clip(recipe.open_clip, recipe.pretrained))
    else:
        model = DferClip(spec)
    if recipe.fast_start and clips is not None:
        frames = torch.from_numpy(clips.example_frames(_EXAMPLE_FRAMES))
        fast_start(model, images_from_frames(frames.unsqueeze(0))[0])
    return model


def _class_texts(recipe: ModelRecipe) -> tuple[str, ...]:
    names = recipe.prompts.class_names
    if recipe.template:
        return tuple(recipe.template.replace("{name}", name) for name in names)
    if recipe.prompts_file:
        path = Path(recipe.prompts_file)
        return descriptors_for(names, read_descriptors(path), path)
    return recipe.prompts.class_texts


def _model_from_file(spec: ModelSpec, path: Path) -> DferClip:
    with step(f"read {path}") as notes:
        if not holds_dfer_clip(path):
            return DferClip(spec, clip_from_file(spec.clip, path))
        model = DferClip(spec)
        notes += take_weights(model, load_checkpoint(path))
        return model


@torch.no_grad()
def fast_start(model: DferClip, images: Tensor) -> None:
    """Overwrite patch embedding, positions and temporal tokens with better random ones.

    Uses torch's global random generator.

    Args:
        model: model with random weights, on the CPU.
        images: unchanged training frames, float32 [N, 3, H, W] in [0, 1]; a few hundred are enough.
    """
    encoder = model.image_encoder
    weight = encoder.conv1.weight
    width, _, patch, _ = weight.shape
    patches = F.unfold(images, patch, stride=patch)  # [N, 3·patch², places]
    mean = patches.mean(dim=0)
    centred = (patches - mean).transpose(0, 1).flatten(1)
    variances, directions = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    # The largest components come last. If a patch has fewer pixels than the width, the other filters are unchanged.
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
