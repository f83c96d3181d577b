"""A recipe: all settings of a training run, as frozen dataclasses read from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from dfer_deploy.errors import TrainingError
from dfer_deploy.plain_data import plain, spec_from_dict
from dfer_deploy.specs import require
from dfer_deploy.train.model_recipe import ModelRecipe
from dfer_deploy.train.optim_recipe import OptimRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = "recipes"
"""Folder of the built-in recipes, beside this module."""

_MAX_BYTES = 1 << 20
"""Largest recipe file. A recipe has some kilobytes, so a larger file is a mistake."""

_MAX_DECODE_SIZE = 2048
"""Largest side of decoded frames in pixels, because all frames of a clip are in memory together."""


@dataclass(frozen=True)
class DataRecipe:
    """The clips, and the mapping of their labels to the model's classes.

    Attributes:
        layout: format of the clips and labels. ``lists`` are the reference implementation's annotation lists; ``dfew``,
            ``ferv39k`` and ``mafw`` are those data sets as distributed (see ``train.layouts``).
        train_list: list of the training clips, relative to the root; ``{fold}`` is replaced by the fold's number.
        test_list: list of the test clips, in the same form.
        folds: number of folds; 1 for a data set with one fixed split.
        fold: number of the fold that is the test, 1 to ``folds``.
        label_names: the model's class name for each label of the lists ("1", "Happy", "anger"). May be empty only for
            ``lists``, whose labels are then indices of the model's classes.
        root: folder of the lists; replaced by ``--data``.
        data_root: location of the listed clips. For ``lists`` as in ``clips.annotations.read_annotations``; None for
            beside the list. For the other layouts a folder; None for the data set's own below the root.
        validation_share: share of every class's training clips that is set aside for choosing the epoch if
            ``run.select`` is ``validation``.
        decode_size: side in pixels of decoded frames, so that a random crop need not be enlarged; None for the model's
            image size.
        cache: keep decoded frames in memory (3 bytes a pixel of every frame of every training clip).
        frames_per_s: frames per second in a clip's folder, if known. With the clips' lengths it gives the frame
            interval in the checkpoint.
    """

    layout: Literal["lists", "dfew", "ferv39k", "mafw"] = "lists"
    train_list: str = "train.txt"
    test_list: str = "test.txt"
    folds: int = 1
    fold: int = 1
    label_names: dict[str, str] = field(default_factory=dict)
    root: str | None = None
    data_root: str | None = None
    validation_share: float = 0.1
    decode_size: int | None = None
    cache: bool = False
    frames_per_s: float | None = None

    def __post_init__(self) -> None:
        require(
            self.decode_size is None or 0 < self.decode_size <= _MAX_DECODE_SIZE,
            f"data.decode_size is {self.decode_size}, expected 1 to {_MAX_DECODE_SIZE} pixels",
        )
        require(self.folds >= 1, f"data.folds is {self.folds}, expected 1 or more")
        require(
            1 <= self.fold <= self.folds, f"data.fold is {self.fold}, expected 1 to {self.folds}, the number of folds"
        )
        for name in ("train_list", "test_list"):
            require(
                self.folds == 1 or "{fold}" in getattr(self, name),
                f"data.{name} is {getattr(self, name)!r} for {self.folds} folds; write {{fold}} for the fold's number",
            )
        require(
            0 < self.validation_share < 1,
            f"data.validation_share is {self.validation_share}, expected a share between 0 and 1",
        )
        require(
            self.frames_per_s is None or self.frames_per_s > 0,
            f"data.frames_per_s is {self.frames_per_s}, expected more than 0, such as 25",
        )
        for label, name in self.label_names.items():
            require(
                isinstance(name, str), f"data.label_names.{label} is {name!r}, expected the name of one of the classes"
            )
        require(
            self.layout == "lists" or bool(self.label_names),
            f"data.label_names is empty; the layout {self.layout} needs the class name of each of its labels",
        )


@dataclass(frozen=True)
class AugmentRecipe:
    """The random changes of training clips, equal for all frames of a clip. The defaults are the paper's.

    Attributes:
        crop_scale: smallest and largest share of the picture's area that a random crop keeps.
        crop_ratio: smallest and largest width / height of the crop.
        flip: probability of a horizontal flip.
        rotation: largest angle in degrees, to either side; 0 for none.
        brightness, contrast, saturation: largest change x of the factor, which is drawn from [max(0, 1 − x), 1 + x]; 0
            for none.
        hue: largest shift of the hue in turns of the colour circle, at most 0.5; 0 for none.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"augment.crop_scale is [{low}, {high}], expected 0 < smallest ≤ largest ≤ 1")
        low, high = self.crop_ratio
        require(0 < low <= high, f"augment.crop_ratio is [{low}, {high}], expected 0 < smallest ≤ largest")
        require(0 <= self.flip <= 1, f"augment.flip is {self.flip}, expected a probability")
        require(0 <= self.rotation <= 180, f"augment.rotation is {self.rotation}, expected 0 to 180 degrees")
        for name in ("brightness", "contrast", "saturation"):
            require(getattr(self, name) >= 0, f"augment.{name} is {getattr(self, name)}, expected 0 or more")
        require(0 <= self.hue <= 0.5, f"augment.hue is {self.hue}, expected 0 to 0.5 turns")


@dataclass(frozen=True)
class RunRecipe:
    """The remaining settings of a run.

    Attributes:
        seed: seed of weights, order, sampling and augmentation.
        device: ``auto`` selects a CUDA device if there is one.
        select: ``validation`` keeps the epoch with the best WAR on clips set aside from the training list. ``last``
            keeps the last epoch and trains on the whole list. ``test`` keeps the epoch with the best WAR on the test
            list, as the paper does, which makes that number optimistic.
        save_every_s: seconds between two saved states, from which an interrupted run continues. Every epoch ends with
            one.
        tensorboard: write scalars for TensorBoard into the folder ``tensorboard`` of the output.
    """

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    select: Literal["validation", "last", "test"] = "validation"
    save_every_s: float = 60.0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 63, f"run.seed is {self.seed}, expected 0 or more and less than 2^63")
        require(self.save_every_s >= 0, f"run.save_every_s is {self.save_every_s}, expected 0 or more")


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run."""

    model: ModelRecipe
    data: DataRecipe = field(default_factory=DataRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self) -> None:
        _require_finite(self.to_dict(), "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers, in the form stored in a checkpoint."""
        return plain(dataclasses.asdict(self))  # type: ignore[no-any-return]


def _require_finite(value: Any, where: str) -> None:
    """Check that every number is finite, at any depth, because the written results contain all of them."""
    if isinstance(value, dict):
        for name, item in value.items():
            _require_finite(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for item in value:
            _require_finite(item, where)
    else:
        require(not isinstance(value, float) or math.isfinite(value), f"{where} is {value}, expected a finite number")


def builtin_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files(__package__) / RECIPES
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def recipe_from_toml(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path_or_name: a TOML file, or the name of a built-in recipe. A text that ends in ``.toml`` or contains a folder
            is a file.
        overrides: settings that replace the recipe's, one after the other, such as ``optim.lr_temporal=1e-3``. The
            value is TOML; any other text is taken as a string (``run.select=test``). ``none`` removes the setting from
            the recipe, so that its default is used.

    Raises:
        DferDeployError: the file or recipe does not exist or is larger than 1 MiB, or a setting is unknown or has a
            wrong value.
    """
    path = Path(path_or_name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"the recipe {path} cannot be read ({error}); expected a TOML file") from error
        require(len(data) <= _MAX_BYTES, f"the recipe {path} is larger than 1 MiB; expected some kilobytes of TOML")
    else:
        text = _builtin_text(path_or_name)
    try:
        values = tomllib.loads(text)
        for override in overrides:
            _override(values, override)
        return spec_from_dict(Recipe, values)
    except ValueError as error:  # TOMLDecodeError is a ValueError, as is the error of a number with thousands of digits
        raise TrainingError(f"the recipe {path_or_name} is not valid TOML ({error}); correct it") from error
    except RecursionError as error:
        raise TrainingError(
            f"the recipe {path_or_name} or a --set has thousands of tables or lists in each other; write plain ones"
        ) from error


def _override(values: dict[str, Any], override: str) -> None:
    """Put one ``key=value`` into the tables of a recipe."""
    path, separator, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not separator or not all(keys):
        raise TrainingError(f"the setting {override!r} is not understood; expected such as optim.lr_temporal=1e-3")
    table = values
    for depth, key in enumerate(keys[:-1], 1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise TrainingError(f"the setting {override!r} goes into {'.'.join(keys[:depth])}, which is not a table")
    if text.strip() == "none":
        table.pop(keys[-1], None)
    else:
        table[keys[-1]] = _override_value(text.strip())


def _override_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is a string. If a list or a number was meant, the check of types refuses it later.
        return text


def _builtin_text(name: str) -> str:
    known = builtin_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise TrainingError(f"there is no recipe {name!r}; {hint} A file's name ends in .toml")
    return (resources.files(__package__) / RECIPES / f"{name}.toml").read_text(encoding="utf-8")
