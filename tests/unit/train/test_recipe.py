"""Recipes: the built-in ones are valid, and mistakes are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import PromptSpec, spec_from_dict
from dfer_deploy.train.model_recipe import ModelRecipe
from dfer_deploy.train.optim_recipe import OptimRecipe
from dfer_deploy.train.recipe import Recipe, builtin_recipes, recipe_from_toml

PROMPTS = """
[model.prompts]
class_names = ["a", "b"]
class_texts = ["text a", "text b"]
"""
PRETRAINED = '[model]\nopen_clip = "ViT-B-32-quickgelu"\npretrained = "openai"\n'


def recipe_of(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return recipe_from_toml(str(path))


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_are_valid_and_survive_plain_data(name: str) -> None:
    recipe = recipe_from_toml(name)
    assert spec_from_dict(Recipe, recipe.to_dict()) == recipe


def test_the_tiny_recipe_keeps_clip_s_text_side() -> None:
    clip = recipe_from_toml("synthetic").model.clip
    assert clip is not None
    assert (clip.text.vocab_size, clip.text.context_length) == (49408, 77)


def test_defaults_are_the_paper_s(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, PRETRAINED + PROMPTS)
    optim = recipe.optim
    assert (optim.name, optim.momentum, optim.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (optim.lr_image_encoder, optim.lr_temporal, optim.lr_prompts) == (1e-5, 1e-2, 1e-3)
    assert (optim.epochs, optim.batch_size, optim.milestones, optim.gamma) == (50, 48, (30, 40), 0.1)
    assert recipe.augment.crop_scale == (0.08, 1.0)
    assert recipe.model.prompts.contexts == 8
    assert recipe.run.select == "last"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PRETRAINED + PROMPTS + "[optim]\nlr_temporall = 1.0\n", "'lr_temporall' in optim; did you mean 'lr_temporal'"),
        (PRETRAINED + PROMPTS + '[optim]\nname = "adam"\n', "optim.name is 'adam', expected one of sgd, adamw"),
        (PRETRAINED + PROMPTS + "[optim]\nepochs = 0\n", "optim.epochs is 0"),
        (PRETRAINED + PROMPTS + "[optim]\nshort_frames = 17\n", "optim.short_frames is 17, expected 1 to 16"),
        (PRETRAINED + PROMPTS + "[augment]\ncrop_scale = [0.5, 0.2]\n", r"augment.crop_scale is \[0.5, 0.2\]"),
        (PRETRAINED + PROMPTS + "[augment]\nflip = 1.5\n", "augment.flip is 1.5"),
        (PRETRAINED + PROMPTS + "[run]\nseed = -1\n", "run.seed is -1"),
        (PROMPTS, "names no backbone"),
        (PRETRAINED + PROMPTS + "[model.clip]\nembed_dim = 8\n", "names two backbones"),
        (PRETRAINED + "fast_start = true\n" + PROMPTS, "would overwrite pretrained weights"),
        ("[model]\npretrained = 'openai'\n[model.clip]\n" + PROMPTS, "without model.open_clip"),
        ("[data]\n", "model is missing"),
        ("[data", "is not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DferDeployError, match=message):
        recipe_of(tmp_path, text)


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DferDeployError, match="no recipe 'sinthetic'; did you mean 'synthetic'"):
        recipe_from_toml("sinthetic")
    with pytest.raises(DferDeployError, match=r"absent.toml cannot be read"):
        recipe_from_toml(str(tmp_path / "absent.toml"))


def test_other_epochs_keep_the_course() -> None:
    optim = OptimRecipe(epochs=50, milestones=(30, 40), warmup_epochs=5, short_epochs=20).with_epochs(10)
    assert (optim.epochs, optim.milestones, optim.warmup_epochs, optim.short_epochs) == (10, (6, 8), 1.0, 4)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe(ModelRecipe(PromptSpec(("a", "b"), ("a", "b")), open_clip="ViT-B-32-quickgelu"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.run.seed = 1  # type: ignore[misc]
