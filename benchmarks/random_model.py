"""The models with random weights that the benchmarks measure: ViT-B/32 with the prompts of DFEW, or a tiny model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.specs import ClipSpec, ModelSpec, Precision, TextSpec, VisionSpec
from dfer_deploy.train.initialisation import model_spec
from dfer_deploy.train.recipe import recipe_from_toml

PROMPTS = model_spec(recipe_from_toml("dfew").model).prompts

TINY = ClipSpec(VisionSpec(32, 16, 64, 2), TextSpec(width=64, layers=2, heads=1), embed_dim=64)


def random_checkpoint(folder: Path, *, quick: bool, image_size: int | None = None) -> Path:
    """Write a checkpoint with random weights, always the same ones: ViT-B/32, or a tiny model.

    Args:
        folder: folder of the checkpoint.
        quick: use the tiny model.
        image_size: side of the frames in pixels, a multiple of the patch; None for the model's own.
    """
    clip = TINY if quick else ClipSpec()
    if image_size is not None:
        clip = dataclasses.replace(clip, vision=dataclasses.replace(clip.vision, image_size=image_size))
    torch.manual_seed(0)
    path = folder / f"random_{clip.vision.image_size}.pt"
    save_checkpoint(path, DferClip(ModelSpec(PROMPTS, clip)), {})
    return path


def exported(checkpoint: Path, *, precision: Precision = "fp32") -> Bundle:
    """Export the checkpoint as a bundle for the embedded server, beside it."""
    output = checkpoint.with_suffix(f".{precision}")
    return export_to_folder(checkpoint, output, ExportOptions("embedded", precision=precision))[0]
