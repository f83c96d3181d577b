"""Every strategy as a recipe value: what the model consists of, what learns, and where its weights come from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_reference, tiny_model, tiny_spec

from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.errors import SettingError, TrainingError
from dfer_deploy.model.clip import build_clip
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import PromptSpec
from dfer_deploy.train.descriptors import write_descriptors
from dfer_deploy.train.initialisation import model_spec, starting_model, trainable_parts
from dfer_deploy.train.model_recipe import ModelRecipe

SPEC = tiny_spec(depth=1)
RECIPE = ModelRecipe(SPEC.prompts, clip=SPEC.clip, temporal=SPEC.temporal)

EXPECTED = {
    # strategy: classifier, temporal layers, contexts, what learns
    "dfer_clip": ("text", 1, 4, {"temporal", "image_encoder", "prompts"}),
    "linear_probe": ("linear", 0, 0, {"head"}),
    "fine_tune": ("linear", 0, 0, {"image_encoder", "head"}),
    "fine_tune_temporal": ("linear", 1, 0, {"temporal", "image_encoder", "head"}),
    "zero_shot": ("text", 0, 0, set()),
    "coop": ("text", 0, 4, {"prompts"}),
    "cocoop": ("image_conditioned_text", 0, 4, {"prompts"}),
}
MODULES = {"temporal": "temporal_net", "image_encoder": "image_encoder", "prompts": "prompt_learner", "head": "head"}


def started(recipe: ModelRecipe) -> DferClip:
    torch.manual_seed(0)
    clips: Any = None  # only fast_start looks at them
    return starting_model(recipe, model_spec(recipe), clips)


def same(first: DferClip, second: DferClip, prefix: str) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    names = [name for name in ours if name.startswith(prefix)]
    assert names
    return all(ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name]) for name in names)


@pytest.mark.parametrize("strategy", EXPECTED)
def test_strategies(strategy: Any) -> None:
    classifier, depth, contexts, trained = EXPECTED[strategy]
    recipe = replace(RECIPE, strategy=strategy)
    spec = model_spec(recipe)
    assert (spec.classifier, spec.temporal.depth, spec.prompts.contexts) == (classifier, depth, contexts)
    model = started(recipe)
    parts = trainable_parts(model, strategy)
    assert set(parts) == trained
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {MODULES[part] for part in trained}
    assert {id(p) for part in parts.values() for p in part} == {id(p) for p in model.parameters() if p.requires_grad}
    assert sum(len(part) for part in parts.values()) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("strategy", [name for name in EXPECTED if name != "zero_shot"])
def test_a_step_moves_what_learns_and_nothing_else(strategy: Any) -> None:
    torch.manual_seed(3)
    recipe = replace(RECIPE, strategy=strategy)
    model = started(recipe)
    parameters = [p for part in trainable_parts(model, strategy).values() for p in part]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    torch.nn.functional.cross_entropy(model(torch.rand(3, 16, 3, 32, 32)), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    moved = {name.partition(".")[0] for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {MODULES[part] for part in EXPECTED[strategy][3]}


def test_without_contexts_and_temporal_model_only_the_image_encoder_learns() -> None:
    recipe = replace(RECIPE, prompts=replace(RECIPE.prompts, contexts=0), temporal=replace(RECIPE.temporal, depth=0))
    model = started(recipe)
    assert set(trainable_parts(model, "dfer_clip")) == {"image_encoder"}
    assert not model.prompt_learner.ctx.requires_grad


def test_class_texts_come_from_a_template_or_a_file(tmp_path: Path) -> None:
    photo = replace(RECIPE, template="a photo of {name}.")
    assert model_spec(photo).prompts.class_texts == tuple(
        f"a photo of {name}." for name in ("happiness", "sadness", "anger")
    )
    path = tmp_path / "prompts.toml"
    write_descriptors(path, {"anger": 'a "red" face', "sadness": "tears", "happiness": "a smile"}, "a model")
    from_file = replace(RECIPE, prompts_file=str(path))
    assert model_spec(from_file).prompts.class_texts == ("a smile", "tears", 'a "red" face')
    write_descriptors(path, {"angr": "a red face", "sadness": "tears", "happiness": "a smile"}, "a model")
    with pytest.raises(TrainingError, match=r"no descriptor for the class 'anger'; did you mean 'angr'\?"):
        model_spec(from_file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "copo"}, "strategy is 'copo', expected one of dfer_clip, linear_probe"),
        ({"strategy": "coop", "prompts": {"class_names": ["a", "b"], "contexts": 0}}, "contexts is 0, expected at"),
        ({"strategy": "fine_tune_temporal", "temporal": {"depth": 0}}, "without a temporal model it is 'fine_tune'"),
        ({"template": "a photo"}, r"model.template is 'a photo', expected a text with \{name\}"),
        ({"template": "{name}", "prompts_file": "a.toml"}, "both replace the class texts"),
        ({"pretrained": "openai"}, "without model.open_clip"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    values = {"prompts": {"class_names": ["a", "b"]}, "clip": {}} | changes
    with pytest.raises(SettingError, match=message):
        spec_from_dict(ModelRecipe, values)


def test_weights_of_clip_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    clip = build_clip(SPEC.clip)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = started(replace(RECIPE, pretrained=str(tmp_path / "clip.pt")))
    trained = DferClip(SPEC, clip)
    assert same(model, trained, "image_encoder.")
    assert same(model, trained, "text_encoder.")


@pytest.mark.parametrize("kind", ["reference", "own"])
def test_weights_of_a_checkpoint_are_taken_whole(tmp_path: Path, kind: str) -> None:
    trained = tiny_model(seed=5)
    path = tmp_path / "model_best.pth"
    save_reference(path, trained) if kind == "reference" else save_checkpoint(path, trained, {})
    model = started(replace(RECIPE, pretrained=str(path)))
    assert same(model, trained, "")


def with_classes(recipe: ModelRecipe, *names: str) -> ModelRecipe:
    prompts = recipe.prompts
    return replace(recipe, prompts=replace(prompts, class_names=names, class_texts=names))


@pytest.mark.parametrize(
    ("recipe", "left_out"),
    [
        (
            with_classes(RECIPE, "joy", "grief", "rage", "calm"),
            r"left out: contexts \(for happiness, sadness, anger, here",
        ),
        (with_classes(RECIPE, "sadness", "happiness", "anger"), r"left out: contexts"),
        (replace(RECIPE, prompts=replace(RECIPE.prompts, contexts=8)), r"left out: contexts \(it has other sizes\)"),
        (replace(RECIPE, prompts=replace(RECIPE.prompts, contexts=0)), r"left out: contexts \(this model has none\)"),
        (
            replace(RECIPE, temporal=replace(RECIPE.temporal, depth=2)),
            r"left out: temporal model \(1 layers there, 2 here",
        ),
        (
            replace(RECIPE, strategy="fine_tune"),
            r"left out: temporal model .*left out: contexts \(this model has none\)",
        ),
    ],
)
def test_what_does_not_fit_is_left_out_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recipe: ModelRecipe, left_out: str
) -> None:
    trained = tiny_model(seed=5)
    save_checkpoint(tmp_path / "a.pt", trained, {})
    model = started(replace(recipe, pretrained=str(tmp_path / "a.pt")))
    assert same(model, trained, "image_encoder.")
    assert same(model, trained, "text_encoder.")
    kept = "temporal_net." if "temporal" not in left_out else "prompt_learner." if "contexts" not in left_out else ""
    assert not kept or same(model, trained, kept)
    if "contexts" in left_out and model.prompt_learner.ctx.shape == trained.prompt_learner.ctx.shape:
        assert not same(model, trained, "prompt_learner.")
    assert re.search(left_out, capfd.readouterr().err)


def test_a_linear_head_is_taken_for_the_same_classes_only(tmp_path: Path) -> None:
    trained = tiny_model(seed=5, classifier="linear", depth=0, contexts=0)
    save_checkpoint(tmp_path / "a.pt", trained, {})
    recipe = replace(RECIPE, strategy="linear_probe", pretrained=str(tmp_path / "a.pt"))
    assert same(started(recipe), trained, "head.")
    assert not same(started(with_classes(recipe, "anger", "sadness", "happiness")), trained, "head.")


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(quick_gelu=False), {})
    with pytest.raises(TrainingError, match=r"the image encoder of .* has the sizes .*quick_gelu=False"):
        started(replace(RECIPE, pretrained=str(tmp_path / "a.pt")))
    vision = replace(SPEC.clip.vision, layers=3)
    wide = replace(RECIPE, clip=replace(SPEC.clip, vision=vision))
    save_checkpoint(tmp_path / "a.pt", tiny_model(), {})
    with pytest.raises(TrainingError, match="expected the same, change the recipe's backbone"):
        started(replace(wide, pretrained=str(tmp_path / "a.pt")))


def test_prompts_need_names_only() -> None:
    assert PromptSpec(("a", "b")).class_texts == ("a", "b")
