"""A recipe: everything that decides what a training run does, as frozen dataclasses read from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import plain, require, spec_from_dict
from dfer_deploy.train.model_recipe import ModelRecipe
from dfer_deploy.train.optim_recipe import OptimRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = "recipes"
"""The folder of the built-in recipes, beside this module."""


@dataclass(frozen=True)
class DataRecipe:
    """Which clips.

    Attributes:
        train_list: annotation list of the training clips, relative to the root.
        test_list: annotation list of the test clips, relative to the root.
        root: folder of the lists; ``--data`` replaces it.
        data_root: where the listed clips are, as in ``clips.annotations.read_annotations``; None means beside the list.
        decode_size: side in pixels at which decoded frames are kept, so that a random crop is not enlarged; None takes
            the model's image size.
        cache: keep decoded frames in memory (3 bytes a pixel of every frame of every training clip).
        frame_interval_s: seconds between two frames of a clip's folder, where known; it goes into the checkpoint.
    """

    train_list: str = "train.txt"
    test_list: str = "test.txt"
    root: str | None = None
    data_root: str | None = None
    decode_size: int | None = None
    cache: bool = False
    frame_interval_s: float | None = None

    def __post_init__(self) -> None:
        require(
            self.decode_size is None or self.decode_size > 0,
            f"data.decode_size is {self.decode_size}, expected a positive number of pixels",
        )


@dataclass(frozen=True)
class AugmentRecipe:
    """How training clips are varied, all frames of a clip alike. The defaults are the paper's.

    Attributes:
        crop_scale: smallest and largest share of the picture's area that a random crop keeps.
        crop_ratio: smallest and largest width / height of the crop.
        flip: probability of a horizontal flip.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"augment.crop_scale is [{low}, {high}], expected 0 < smallest ≤ largest ≤ 1")
        low, high = self.crop_ratio
        require(0 < low <= high, f"augment.crop_ratio is [{low}, {high}], expected 0 < smallest ≤ largest")
        require(0 <= self.flip <= 1, f"augment.flip is {self.flip}, expected a probability")


@dataclass(frozen=True)
class RunRecipe:
    """Everything else about a run.

    Attributes:
        seed: of weights, order, sampling and augmentation.
        device: ``auto`` takes a CUDA device where there is one.
        select: ``last`` keeps the last epoch; ``test`` also keeps the epoch with the best WAR on the test list, as the
            paper does, which makes that number optimistic.
    """

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    select: Literal["last", "test"] = "last"

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"run.seed is {self.seed}, expected 0 or more")


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    model: ModelRecipe
    data: DataRecipe = field(default_factory=DataRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers, as they go into a checkpoint."""
        return plain(dataclasses.asdict(self))  # type: ignore[no-any-return]


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files(__package__) / RECIPES
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def recipe_from_toml(path_or_name: str) -> Recipe:
    """Reads a recipe.

    Args:
        path_or_name: a TOML file, or the name of a built-in recipe. What ends in ``.toml`` or has a folder in it is a
            file.

    Raises:
        DferDeployError: there is no such file or recipe, or a setting is unknown or has a wrong value.
    """
    path = Path(path_or_name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DferDeployError(f"the recipe {path} cannot be read ({error}); expected a TOML file") from error
    else:
        text = _builtin_text(path_or_name)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DferDeployError(f"the recipe {path_or_name} is not valid TOML ({error}); correct it") from error
    return spec_from_dict(Recipe, values)


def _builtin_text(name: str) -> str:
    known = builtin_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise DferDeployError(f"there is no recipe {name!r}; {hint} A file's name ends in .toml")
    return (resources.files(__package__) / RECIPES / f"{name}.toml").read_text(encoding="utf-8")
