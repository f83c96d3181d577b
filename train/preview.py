"""A contact sheet of a recipe's augmentation, for a check before hours of training."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dfer_deploy.clips.reading import Clip
from dfer_deploy.files import atomic_file
from dfer_deploy.train.data import TrainingClips
from dfer_deploy.train.initialisation import model_spec
from dfer_deploy.train.layouts import training_annotations
from dfer_deploy.train.recipe import AugmentRecipe, Recipe

_TILE = 112
"""Side of a frame in pixels."""

_VARIED = 8
"""Number of frames of a changed clip that are shown, out of 16."""

_MARGIN, _GAP, _HEADER, _NAMES = 16, 4, 74, 150
_INK, _GREY = (20, 20, 20), (105, 105, 105)


def write_preview(recipe: Recipe, path: Path) -> None:
    """Write a PNG that shows a training clip of each class, first unchanged, then changed as in an epoch.

    A row shows 8 of the changed clip's 16 frames, from left to right in time. The first column is the unchanged frame
    from the clip's middle. A clip that cannot be read is replaced by the next one. Classes without clips do not have a
    row.

    Raises:
        DferDeployError: more than 5 % of the clips cannot be read, or the file cannot be written.
    """
    annotations = training_annotations(recipe)
    names = recipe.model.prompts.class_names
    image_size = model_spec(recipe.model).clip.vision.image_size
    clips = TrainingClips(annotations, image_size, recipe.augment, recipe.run.seed, recipe.data.decode_size)
    readable = [index for index, annotation in enumerate(annotations) if annotation.name not in clips.unreadable]
    classes = [[index for index in readable if annotations[index].label == label] for label in range(len(names))]
    rows = []
    for label, members in enumerate(classes):
        # Different parts of the classes, because lists are often sorted and one film or person would be in every row.
        start = label * len(members) // len(names)
        row = clips.first_readable(
            members[start:] + members[:start],
            lambda index: (annotations[index], clips.unchanged(index, 3)[1:2], clips.clip(index, epoch=1)[::2]),
        )
        rows += [] if row is None else [row]
    sheet = Image.new("RGB", _size(len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 14), "Training clips as the model sees them", fill=_INK, font=_font(20))
    pen.text((_MARGIN, 42), _summary(recipe.augment), fill=_GREY, font=_font(14))
    pen.text((_left(0), _HEADER), "unchanged", fill=_GREY, font=_font(13))
    pen.text((_left(1), _HEADER), "varied, time from left to right", fill=_GREY, font=_font(13))
    for number, (annotation, unchanged, varied) in enumerate(rows):
        top = _top(number)
        pen.text((_MARGIN, top + _TILE // 2 - 18), names[annotation.label], fill=_INK, font=_font(16))
        pen.text((_MARGIN, top + _TILE // 2 + 4), _shortened(annotation.name), fill=_GREY, font=_font(11))
        _paste(sheet, unchanged, 0, top)
        _paste(sheet, varied, 1, top)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _size(rows: int) -> tuple[int, int]:
    return _left(_VARIED + 1) - _GAP + _MARGIN, _top(rows) - _GAP + _MARGIN


def _left(column: int) -> int:
    """Return the left edge of a column; the unchanged frame stands apart."""
    return _MARGIN + _NAMES + column * (_TILE + _GAP) + (3 * _GAP if column else 0)


def _top(row: int) -> int:
    return _HEADER + 22 + row * (_TILE + _GAP)


def _paste(sheet: Image.Image, frames: Clip, column: int, top: int) -> None:
    for offset, frame in enumerate(frames):
        tile = Image.fromarray(frame).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (_left(column + offset), top))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(name: str) -> str:
    """Return the end of a clip's name, in which clips differ."""
    return name if len(name) <= 24 else "…" + name[-23:]


def _summary(augment: AugmentRecipe) -> str:
    smallest, largest = augment.crop_scale
    narrow, wide = augment.crop_ratio
    parts = [
        f"crop {smallest:.0%} to {largest:.0%} of the area, ratio {narrow:.2f} to {wide:.2f}",
        f"flip {augment.flip:.0%}",
    ]
    if augment.rotation:
        parts.append(f"rotation ±{augment.rotation:g}°")
    parts += [
        f"{name} ±{getattr(augment, name):g}"
        for name in ("brightness", "contrast", "saturation", "hue")
        if getattr(augment, name)
    ]
    return "   ·   ".join(parts)
