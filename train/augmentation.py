"""Random changes of a training clip, the same for all of its frames.

What the reference implementation does with Pillow (upstream file ``dataloader/video_transform.py``), in its order:
rotation and colours first, then crop, resize and flip. With the same numbers drawn the pixels are the same. The
differences:

- The ratio of a crop is drawn log-uniformly, as torchvision does; upstream draws it uniformly and then swaps width and
  height half of the time. After ten crops that do not fit, upstream resizes the shorter side and crops at random.
- Upstream computes every colour change from the original frame and keeps only the last one. With brightness alone, the
  only one that the paper uses, this is the same.
- Frames come as squares of the recipe's ``decode_size``, which the distributed frames of DFEW (224 × 224) are already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from dfer_deploy.clips.reading import Clip
from dfer_deploy.train.recipe import AugmentRecipe

_TRIES = 10


def _hue_shifted(image: Image.Image, turns: float) -> Image.Image:
    """As torchvision's ``adjust_hue``: Pillow's HSV has 256 hues, and the shift is rounded towards 0."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue, dtype=np.int64) + int(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(shifted.astype(np.uint8)), saturation, value)).convert("RGB")


_COLOURS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": _hue_shifted,
}


@dataclass(frozen=True)
class Crop:
    """A rectangle of whole pixels and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


@dataclass(frozen=True)
class Variation:
    """Everything that is done to the frames of a clip.

    Attributes:
        crop: the rectangle that is kept.
        angle: degrees, counter-clockwise; the corners become black.
        colours: names and factors (turns for the hue), in the order in which they are applied.
    """

    crop: Crop
    angle: float = 0.0
    colours: tuple[tuple[str, float], ...] = ()


def random_variation(height: int, width: int, recipe: AugmentRecipe, rng: np.random.Generator) -> Variation:
    """Draws what becomes of a clip of ``height`` × ``width`` pixels."""
    crop = random_crop(height, width, recipe, rng)
    angle = rng.uniform(-recipe.rotation, recipe.rotation) if recipe.rotation else 0.0
    colours = []
    for name in _COLOURS:
        if largest := getattr(recipe, name):
            low, high = (-largest, largest) if name == "hue" else (max(0.0, 1 - largest), 1 + largest)
            colours.append((name, rng.uniform(low, high)))
    order = rng.permutation(len(colours)) if len(colours) > 1 else range(len(colours))
    return Variation(crop, angle, tuple(colours[index] for index in order))


def varied(frames: Clip, variation: Variation, image_size: int) -> Clip:
    """Changes every frame alike.

    Args:
        frames: uint8 [T, H, W, 3].
        variation: what to do.
        image_size: S.

    Returns:
        uint8 [T, S, S, 3].
    """
    if variation.angle or variation.colours:
        frames = np.stack([np.asarray(_coloured(_rotated(frame, variation.angle), variation)) for frame in frames])
    return cropped(frames, variation.crop, image_size)


def _rotated(frame: Clip, angle: float) -> Image.Image:
    """Pillow's rotation takes the nearest pixel, as upstream."""
    image = Image.fromarray(frame)
    return image.rotate(angle) if angle else image


def _coloured(image: Image.Image, variation: Variation) -> Image.Image:
    for name, factor in variation.colours:
        image = _COLOURS[name](image, factor)
    return image


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
    # Cut first: the filter of a resize with a box would also look at pixels around the box.
    out = np.stack(
        [np.asarray(Image.fromarray(frame).crop(box).resize(size, Image.Resampling.BILINEAR)) for frame in frames]
    )
    return np.ascontiguousarray(out[:, :, ::-1]) if crop.mirrored else out
