"""Tiny seeded models, their checkpoints in both formats, and clips to show them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.specs import ClipSpec, ModelSpec, PromptSpec, TemporalSpec, TextSpec, VisionSpec

TEXTS = (
    "a smiling mouth, raised cheeks, wrinkled eyes, and arched eyebrows.",
    "tears, a downward turned mouth, drooping upper eyelids, and a wrinkled forehead.",
    "an expression of anger.",
)


def tiny_spec(**changes: Any) -> ModelSpec:
    """Three classes, a ViT of 2 layers on 32 × 32 pixels, embeddings of 64 dimensions."""
    prompts = {
        "class_names": ("happiness", "sadness", "anger"),
        "class_texts": TEXTS,
        "contexts": changes.pop("contexts", 4),
        "class_specific": changes.pop("class_specific", True),
        "position": changes.pop("position", "end"),
    }
    return ModelSpec(
        prompts=PromptSpec(**prompts),
        clip=ClipSpec(
            vision=VisionSpec(image_size=32, patch_size=16, width=64, layers=2),
            text=TextSpec(width=64, layers=2, heads=1),
            embed_dim=64,
            quick_gelu=changes.pop("quick_gelu", True),
        ),
        temporal=TemporalSpec(depth=changes.pop("depth", 1)),
        **changes,
    )


def tiny_model(seed: int = 0, **changes: Any) -> DferClip:
    """A model with random weights. Its logits depend on the clip, but little: most seeds answer one class to all."""
    torch.manual_seed(seed)
    return DferClip(tiny_spec(**changes)).eval()


def varied_model() -> DferClip:
    """A tiny model that answers all three classes: of what the video features of all clips have in common, most is
    taken off."""
    model = tiny_model(seed=2)
    with torch.no_grad():
        images = images_from_frames(torch.from_numpy(clips_of(16, seed=1)))
        common = model.temporal_net(model.encode_frames(images)).mean(dim=0)
        model.temporal_net.blocks[-1].mlp_out.bias -= 0.8 * common
    return model


def overflow_in_fp16(model: DferClip, *blocks: str) -> DferClip:
    """Scales the values of blocks' attention up and their output down: the same function, but not in fp16."""
    with torch.no_grad():
        for name in blocks:
            part, index = name.split(".")
            if part == "encoder":
                attention = model.image_encoder.transformer.resblocks[int(index)].attn
                width = attention.in_proj_weight.shape[1]
                attention.in_proj_weight[2 * width :] *= 1e5
                attention.in_proj_bias[2 * width :] *= 1e5
                attention.out_proj.weight /= 1e5
            else:
                attention = model.temporal_net.blocks[int(index)].attention
                attention.to_qkv.weight[2 * attention.to_qkv.weight.shape[0] // 3 :] *= 1e5
                attention.to_out.weight /= 1e5
    return model


def clips_of(count: int, size: int = 32, frames: int = 16, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Clips of coloured squares that move: uint8 [count, frames, size, size, 3]."""
    rng = np.random.default_rng(seed)
    clips = np.zeros((count, frames, size, size, 3), np.uint8)
    for clip in clips:
        clip[:] = rng.integers(0, 120, 3)
        colour, place, step = rng.integers(100, 256, 3), rng.integers(0, size, 2), rng.integers(-3, 4, 2)
        for time, frame in enumerate(clip):
            y, x = (place + time * step) % (size - 8)
            frame[y : y + 8, x : x + 8] = colour
    return clips


def write_frames(folder: Path, clip: np.ndarray[Any, Any], name: str = "{:05d}.png") -> None:
    """Writes a clip [T, H, W, 3] as images."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(clip, 1):
        Image.fromarray(frame).save(folder / name.format(index))


def reference_names(model: DferClip) -> dict[str, torch.Tensor]:
    """The model's parameters under the names of the reference implementation, ``clip_model_`` included."""
    own = model.state_dict()
    state = {
        "prompt_learner.ctx": own["prompt_learner.ctx"],
        "prompt_learner.token_prefix": model.text_encoder.token_embedding(model.prompt_learner.prefix_ids).detach(),
        "prompt_learner.token_suffix": model.text_encoder.token_embedding(model.prompt_learner.suffix_ids).detach(),
    }
    blocks = {
        "norm_attention": "0.fn.norm",
        "attention.to_qkv": "0.fn.fn.to_qkv",
        "attention.to_out": "0.fn.fn.to_out.0",
        "norm_mlp": "1.fn.norm",
        "mlp_in": "1.fn.fn.net.0",
        "mlp_out": "1.fn.fn.net.3",
    }
    for name, tensor in own.items():
        if name.startswith("text_encoder.") and "token_embedding" not in name:
            state[name] = tensor
            state["clip_model_." + name.removeprefix("text_encoder.")] = tensor
        elif name.startswith("image_encoder."):
            state[name] = tensor
            state["clip_model_.visual." + name.removeprefix("image_encoder.")] = tensor
        elif name.startswith("temporal_net.blocks."):
            _, _, layer, rest = name.split(".", 3)
            part, _, kind = rest.rpartition(".")
            state[f"temporal_net.temporal_transformer.layers.{layer}.{blocks[part]}.{kind}"] = tensor
        elif name.startswith("temporal_net."):
            state[name] = tensor
    state["clip_model_.token_embedding.weight"] = own["text_encoder.token_embedding.weight"]
    state["clip_model_.logit_scale"] = torch.tensor(4.6)
    return {f"module.{name}": tensor for name, tensor in state.items()}


def save_reference(path: Path, model: DferClip, best_acc: float = 66.6667, **changes: Any) -> Path:
    """Writes what the reference implementation's ``save_checkpoint`` writes, its RecorderMeter included."""

    class RecorderMeter:
        def __init__(self) -> None:
            self.epoch_losses = np.zeros((50, 2), dtype=np.float32)

    RecorderMeter.__module__, RecorderMeter.__qualname__ = "__main__", "RecorderMeter"
    content = {
        "epoch": 3,
        "state_dict": reference_names(model),
        "best_acc": torch.tensor(best_acc),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "recorder": RecorderMeter(),
    }
    main: Any = sys.modules["__main__"]
    main.RecorderMeter = RecorderMeter
    try:
        torch.save(content | changes, path)
    finally:
        del main.RecorderMeter
    return path
