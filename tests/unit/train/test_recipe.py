"""Recipes: the built-in ones are valid, and mistakes are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.errors import SettingError, TrainingError
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import PromptSpec
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
    assert recipe.run.select == "validation"


DESCRIPTORS = {
    "happiness": "a smiling mouth, raised cheeks, wrinkled eyes, and arched eyebrows.",
    "sadness": "tears, a downward turned mouth, drooping upper eyelids, and a wrinkled forehead.",
    "neutral": "relaxed facial muscles, a straight mouth, a smooth forehead, and unremarkable eyebrows.",
    "anger": "furrowed eyebrows, narrow eyes, tightened lips, and flared nostrils.",
    "surprise": "widened eyes, an open mouth, raised eyebrows, and a frozen expression.",
    "disgust": "a wrinkled nose, lowered eyebrows, a tightened mouth, and narrow eyes.",
    "fear": "raised eyebrows, parted lips, a furrowed brow, and a retracted chin.",
    "contempt": "one side of its mouth raised, one eyebrow lower and one raised, narrowed eyes, and a raised chin.",
    "anxiety": "a tensed forehead, tightly pressed lips, pupil dilation, and tensed facial muscles.",
    "helplessness": "drooping eyebrows, a downward gaze, a downturned mouth, and lacking expression.",
    "disappointment": "a downturned mouth, lowered eyebrows, narrowed eyes, and a sighing face.",
}
"""Upstream file ``models/Text.py``, in the order of upstream's class indices."""

PAPER: dict[str, Any] = {
    "model.strategy": "dfer_clip",
    "model.open_clip": "ViT-B-32-quickgelu",
    "model.pretrained": "openai",
    "model.temporal": {"depth": 1, "heads": 8, "head_width": 64, "mlp_width": 1024, "max_frames": 16},
    "model.prompts.contexts": 8,
    "model.prompts.class_specific": True,
    "model.prompts.position": "end",
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.lr_temporal": 1e-2,
    "optim.lr_image_encoder": 1e-5,
    "optim.lr_prompts": 1e-3,
    "optim.epochs": 50,
    "optim.batch_size": 48,
    "optim.schedule": "multistep",
    "optim.milestones": [30, 40],
    "optim.gamma": 0.1,
    "optim.warmup_epochs": 0.0,
    "optim.clip_norm": None,
    "optim.short_epochs": 0,
    "optim.precision": "fp32",
    "optim.label_smoothing": 0.0,
    "optim.ema_decay": None,
    "optim.balanced": False,
    "augment.crop_scale": [0.08, 1.0],
    "augment.crop_ratio": [3 / 4, 4 / 3],
    "augment.flip": 0.5,
    "augment.contrast": 0.0,
    "augment.saturation": 0.0,
    "augment.hue": 0.0,
    "run.seed": 1,
    "run.select": "validation",
}
"""What the three data sets have in common."""

PAPER_BY_DATA_SET: dict[str, dict[str, Any]] = {
    "dfew": {"data.folds": 5, "augment.brightness": 0.5, "augment.rotation": 0.0},
    "ferv39k": {"data.folds": 1, "augment.brightness": 0.0, "augment.rotation": 4.0},
    "mafw": {"data.folds": 5, "augment.brightness": 0.0, "augment.rotation": 0.0},
}

LABELS = {
    "dfew": dict(zip("1234567", DESCRIPTORS, strict=False)),
    "ferv39k": dict(
        zip(("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"), DESCRIPTORS, strict=False)
    ),
    "mafw": {name: name for name in DESCRIPTORS},
}


@pytest.mark.parametrize("name", PAPER_BY_DATA_SET)
def test_the_paper_s_recipes_have_its_numbers(name: str) -> None:
    values = recipe_from_toml(name).to_dict()
    for path, expected in (PAPER | PAPER_BY_DATA_SET[name] | {"data.layout": name}).items():
        found = values
        for key in path.split("."):
            found = found[key]
        assert found == expected, path
    classes = dict(list(DESCRIPTORS.items())[: 11 if name == "mafw" else 7])
    assert values["model"]["prompts"]["class_names"] == list(classes)
    assert values["model"]["prompts"]["class_texts"] == list(classes.values())
    assert values["data"]["label_names"] == LABELS[name]


def test_settings_replace_those_of_the_recipe() -> None:
    recipe = recipe_from_toml(
        "dfew",
        [
            "optim.lr_temporal=1e-3",
            "run.select=test",
            "run.select = 'last'",
            "data.root=/data/my set",
            "data.label_names.1=joy",
            "augment.crop_scale=[0.5, 1]",
            "optim.ema_decay=0.99",
            "model.open_clip=none",
            "model.pretrained=none",
            "model.clip.embed_dim=64",
        ],
    )
    assert (recipe.optim.lr_temporal, recipe.run.select, recipe.data.root) == (1e-3, "last", "/data/my set")
    assert (recipe.data.label_names["1"], recipe.data.label_names["2"]) == ("joy", "sadness")
    assert recipe.augment.crop_scale == (0.5, 1.0)
    assert (recipe.model.open_clip, recipe.model.pretrained) == (None, "")
    assert recipe.model.clip is not None
    assert recipe.model.clip.embed_dim == 64
    assert recipe_from_toml("dfew", ["data.layout=lists", "data.label_names={}"]).data.label_names == {}
    assert recipe_from_toml("dfew", ["model.template={name}."]).model.template == "{name}."


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lr_tempral=1", "unknown key 'lr_tempral' in optim; did you mean 'lr_temporal'"),
        ("optm.lr_temporal=1", "unknown key 'optm' in Recipe; did you mean 'optim'"),
        ("optim.epochs=ten", "optim.epochs is 'ten', expected int"),
        ("augment.crop_scale=[0.5, 1", r"augment.crop_scale is '\[0.5, 1', expected a list"),
        ("run.select=tst", "run.select is 'tst', expected one of validation, last, test"),
        ("optim.lr_head=inf", "optim.lr_head is inf, expected a finite number"),
        ("optim.clip_norm=inf", "optim.clip_norm is inf, expected a finite number"),
        ("augment.crop_ratio=[1, inf]", "augment.crop_ratio is inf, expected a finite number"),
        ("data.frames_per_s=inf", "data.frames_per_s is inf, expected a finite number"),
        ("data.frames_per_s=0", "data.frames_per_s is 0.0, expected more than 0"),
        ("optim.momentum=1", "optim.momentum is 1.0, expected 0 or more and less than 1"),
        ("optim.milestones=[40, 30]", r"optim.milestones is \[40, 30\], expected rising numbers"),
        ("optim.milestones=[0, 30]", r"optim.milestones is \[0, 30\], expected rising numbers"),
        ("run.seed=-1", "run.seed is -1, expected 0 or more and less than 2"),
        ("run.seed=9223372036854775808", "run.seed is an integer of more than 64 bits"),
        ("data.decode_size=2049", "data.decode_size is 2049, expected 1 to 2048"),
        ("data.decode_size=0", "data.decode_size is 0, expected 1 to 2048"),
        pytest.param("optim.lr_head=1" + "0" * 400, "optim.lr_head is an integer of more than 64 bits", id="large"),
    ],
)
def test_wrong_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        recipe_from_toml("synthetic", [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.seed.x=1", "goes into run.seed, which is not a table"),
        ("optim.epochs", "'optim.epochs' is not understood; expected such as optim.lr_temporal=1e-3"),
        ("=3", "'=3' is not understood"),
        pytest.param("optim.lr_head=1" + "0" * 5000, "the recipe synthetic is not valid TOML", id="larger"),
        pytest.param("optim.lr_head=" + "[" * 100_000, "thousands of tables or lists in each other", id="lists"),
        pytest.param("data.label_names.1" + ".1" * 10_000 + "=1", "thousands of tables or lists", id="tables"),
    ],
)
def test_settings_that_are_not_understood_are_refused(setting: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe_from_toml("synthetic", [setting])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PRETRAINED + PROMPTS + "[optim]\nlr_temporall = 1.0\n", "'lr_temporall' in optim; did you mean 'lr_temporal'"),
        (PRETRAINED + PROMPTS + '[optim]\nname = "adam"\n', "optim.name is 'adam', expected one of sgd, adamw"),
        (PRETRAINED + PROMPTS + "[optim]\nepochs = 0\n", "optim.epochs is 0"),
        (PRETRAINED + PROMPTS + "[optim]\nshort_frames = 17\n", "optim.short_frames is 17, expected 1 to 16"),
        (PRETRAINED + PROMPTS + "[augment]\ncrop_scale = [0.5, 0.2]\n", r"augment.crop_scale is \[0.5, 0.2\]"),
        (PRETRAINED + PROMPTS + "[augment]\nflip = 1.5\n", "augment.flip is 1.5"),
        (PRETRAINED + PROMPTS + "[augment]\nrotation = 200\n", "augment.rotation is 200"),
        (PRETRAINED + PROMPTS + "[augment]\nbrightness = -0.1\n", "augment.brightness is -0.1"),
        (PRETRAINED + PROMPTS + "[augment]\nhue = 0.6\n", "augment.hue is 0.6"),
        (PRETRAINED + PROMPTS + "[data]\nfolds = 0\n", "data.folds is 0"),
        (PRETRAINED + PROMPTS + "[data]\nfold = 2\n", "data.fold is 2, expected 1 to 1"),
        (PRETRAINED + PROMPTS + "[data]\nfolds = 5\n", "data.train_list is 'train.txt' for 5 folds; write {fold}"),
        (PRETRAINED + PROMPTS + "[data]\nvalidation_share = 1.0\n", "data.validation_share is 1.0"),
        (PRETRAINED + PROMPTS + "[data]\nlayout = 'DFEW'\n", "data.layout is 'DFEW', expected one of lists, dfew"),
        (PRETRAINED + PROMPTS + "[data]\nlayout = 'dfew'\n", "data.label_names is empty"),
        (PRETRAINED + PROMPTS + "[data.label_names]\n1 = 2\n", "data.label_names.1 is 2"),
        (PRETRAINED + PROMPTS + "[run]\nseed = -1\n", "run.seed is -1"),
        (PROMPTS, "names no backbone"),
        (PRETRAINED + PROMPTS + "[model.clip]\nembed_dim = 8\n", "names two backbones"),
        (PRETRAINED + "fast_start = true\n" + PROMPTS, "would overwrite pretrained weights"),
        ("[model]\npretrained = 'openai'\n[model.clip]\n" + PROMPTS, "without model.open_clip"),
        ("[data]\n", "model is missing"),
        pytest.param(PRETRAINED + PROMPTS + "#" * (1 << 20), "is larger than 1 MiB", id="large"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        recipe_of(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "is not valid TOML"),
        pytest.param("a = " + "[" * 100_000, "thousands of tables or lists in each other", id="lists"),
    ],
)
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe_of(tmp_path, text)


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no recipe 'sinthetic'; did you mean 'synthetic'"):
        recipe_from_toml("sinthetic")
    with pytest.raises(TrainingError, match=r"absent.toml cannot be read"):
        recipe_from_toml(str(tmp_path / "absent.toml"))


def test_other_epochs_keep_the_course() -> None:
    optim = OptimRecipe(epochs=50, milestones=(30, 40), warmup_epochs=5, short_epochs=20).with_epochs(10)
    assert (optim.epochs, optim.milestones, optim.warmup_epochs, optim.short_epochs) == (10, (6, 8), 1.0, 4)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe(ModelRecipe(PromptSpec(("a", "b"), ("a", "b")), open_clip="ViT-B-32-quickgelu"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.run.seed = 1  # type: ignore[misc]
