"""Random changes of a training clip, equal for all of its frames.

The changes are those that the reference implementation makes with Pillow (upstream file
``dataloader/video_transform.py``), in its order: rotation and colours first, then crop, resize and flip. For the same
random numbers the pixels are the same. The differences:

- The ratio of a crop is drawn log-uniformly, as torchvision does; upstream draws it uniformly and then swaps width and
  height half of the time. After ten crops that do not fit, upstream resizes the shorter side and crops at random.
- Upstream computes every colour change from the original frame and keeps only the last one. With brightness alone, the
  only one that the paper uses, this is the same.
- Frames are squares of the recipe's ``decode_size``, like the distributed frames of DFEW (224 × 224).
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
"""Number of random crops that are tried."""


def _hue_shifted(image: Image.Image, turns: float) -> Image.Image:
    """Shift the hue as torchvision's ``adjust_hue``: Pillow's HSV has 256 hues, and the shift is rounded towards 0."""
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
    """A rectangle of whole pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


@dataclass(frozen=True)
class Variation:
    """All changes of a clip's frames.

    Attributes:
        crop: the rectangle that is kept.
        angle: rotation in degrees, counter-clockwise; the corners become black.
        colours: names of the colour changes and their factors (turns for the hue), in the order of their application.
    """

    crop: Crop
    angle: float = 0.0
    colours: tuple[tuple[str, float], ...] = ()


def random_variation(height: int, width: int, recipe: AugmentRecipe, rng: np.random.Generator) -> Variation:
    """Draw the changes of a clip of ``height`` × ``width`` pixels."""
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
    """Apply the same changes to every frame.

    Args:
        frames: uint8 [T, H, W, 3].
        variation: the changes.
        image_size: S, the side of the result in pixels.

    Returns:
        The changed frames, uint8 [T, S, S, 3].
    """
    if variation.angle or variation.colours:
        frames = np.stack([np.asarray(_coloured(_rotated(frame, variation.angle), variation)) for frame in frames])
    return cropped(frames, variation.crop, image_size)


def _rotated(frame: Clip, angle: float) -> Image.Image:
    """Rotate a frame with the nearest pixel, as upstream."""
    image = Image.fromarray(frame)
    return image.rotate(angle) if angle else image


def _coloured(image: Image.Image, variation: Variation) -> Image.Image:
    for name, factor in variation.colours:
        image = _COLOURS[name](image, factor)
    return image


def random_crop(height: int, width: int, recipe: AugmentRecipe, rng: np.random.Generator) -> Crop:
    """Draw a crop of random area and ratio, anywhere in a picture of ``height`` × ``width`` pixels.

    As in torchvision's RandomResizedCrop, the ratio is drawn log-uniformly. After ten crops that do not fit, the result
    is the largest crop in the middle with an allowed ratio.
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
    """Cut, resize and mirror every frame in the same way.

    Args:
        frames: uint8 [T, H, W, 3].
        crop: the rectangle to cut out.
        image_size: S, the side of the result in pixels.

    Returns:
        uint8 [T, S, S, 3], resized with Pillow's bilinear filter, which averages when it reduces the size.
    """
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    size = (image_size, image_size)
    # Cut first, because the filter of a resize with a box would also use pixels around the box.
    out = np.stack(
        [np.asarray(Image.fromarray(frame).crop(box).resize(size, Image.Resampling.BILINEAR)) for frame in frames]
    )
    return np.ascontiguousarray(out[:, :, ::-1]) if crop.mirrored else out
