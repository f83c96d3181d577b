"""Take starting weights from another DFER-CLIP, which may have other classes, contexts or temporal layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dfer_deploy.checkpoints.checkpoint import Checkpoint
from dfer_deploy.errors import TrainingError
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.specs import ModelSpec

_CLIP = {"image_encoder.": "image encoder", "text_encoder.": "text encoder"}


@torch.no_grad()
def take_weights(model: DferClip, checkpoint: Checkpoint) -> list[str]:
    """Copy the parameters that a checkpoint and a model have in common.

    Both encoders must fit. The temporal model, the contexts (with the network that shifts them) and the linear head are
    copied if their shapes are equal. Parameters of single classes are copied only if the class names or the class texts
    are equal too, in the same order.

    Args:
        model: the model; its parameters are overwritten.
        checkpoint: checkpoint of dfer-deploy or of the reference implementation.

    Returns:
        One line for every part that was not copied, with the reason.

    Raises:
        DferDeployError: the encoders have other sizes, or the checkpoint is damaged.
    """
    theirs, ours = checkpoint.spec, model.spec
    source, target = checkpoint.build_model().state_dict(), model.state_dict()
    for prefix, name in _CLIP.items():
        if not _fits(source, target, prefix) or theirs.clip.quick_gelu != ours.clip.quick_gelu:
            raise TrainingError(
                f"the {name} of {checkpoint.path} has the sizes {theirs.clip}, the recipe's {ours.clip}; "
                "expected the same, change the recipe's backbone"
            )
    taken, left = list(_CLIP), []
    for prefix, name in (
        ("temporal_net.", "temporal model"),
        ("prompt_learner.ctx", "contexts"),
        ("prompt_learner.meta_net.", "network that shifts the contexts"),
        ("head.", "linear head"),
    ):
        reason = _difference(prefix, theirs, ours)
        if not any(key.startswith(prefix) and tensor.numel() for key, tensor in source.items()):
            continue
        if not any(key.startswith(prefix) and tensor.numel() for key, tensor in target.items()):
            reason = "this model has none"
        elif not reason and not _fits(source, target, prefix):
            reason = "it has other sizes"
        if reason:
            left.append(f"left out: {name} ({reason})")
        else:
            taken.append(prefix)
    for key, tensor in target.items():
        if key.startswith(tuple(taken)):
            tensor.copy_(source[key])
    return left


def _fits(source: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str) -> bool:
    shapes = ({k: v.shape for k, v in state.items() if k.startswith(prefix)} for state in (source, target))
    first, second = shapes
    return first == second


def _difference(prefix: str, theirs: ModelSpec, ours: ModelSpec) -> str:
    """Return why a part has another meaning in both models although its shapes are equal; empty if it has not."""
    if prefix == "temporal_net." and theirs.temporal != ours.temporal:
        return f"{theirs.temporal.depth} layers there, {ours.temporal.depth} here"
    by_class = prefix == "head." or (prefix == "prompt_learner.ctx" and theirs.prompts.class_specific)
    their, our = theirs.prompts, ours.prompts
    if by_class and their.class_names != our.class_names and their.class_texts != our.class_texts:
        return f"for {', '.join(their.class_names)}, here {', '.join(our.class_names)}"
    return ""
