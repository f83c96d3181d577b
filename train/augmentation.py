"""Random changes of a training clip, the same for all of its frames.

The reference implementation's ``GroupRandomSizedCrop`` and ``GroupRandomHorizontalFlip``, with Pillow's resize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dfer_deploy.clips.reading import Clip
from dfer_deploy.train.recipe import AugmentRecipe

_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A rectangle of whole pixels and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def random_crop(height: int, width: int, recipe: AugmentRecipe, rng: np.random.Generator) -> Crop:
    """A crop of random area and ratio, anywhere in a picture of ``height`` × ``width`` pixels.

    As torchvision's RandomResizedCrop: the ratio is drawn log-uniformly; after ten crops that do not fit, the largest
    one in the middle that has an allowed ratio is taken.
    """
    mirrored = bool(rng.random() < recipe.flip)
    smallest, largest = recipe.crop_ratio
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*recipe.crop_scale)
        ratio = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return Crop(top, left, h, w, mirrored)
    ratio = min(max(width / height, smallest), largest)
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return Crop((height - h) // 2, (width - w) // 2, h, w, mirrored)


def cropped(frames: Clip, crop: Crop, image_size: int) -> Clip:
    """Cuts, resizes and mirrors every frame alike.

    Args:
        frames: uint8 [T, H, W, 3].
        crop: what to cut out.
        image_size: S.

    Returns:
        uint8 [T, S, S, 3]; Pillow's bilinear filter, which averages where it makes the picture smaller.
    """
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    size = (image_size, image_size)
    out = np.stack(
        [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, box)) for frame in frames]
    )
    return np.ascontiguousarray(out[:, :, ::-1]) if crop.mirrored else out
