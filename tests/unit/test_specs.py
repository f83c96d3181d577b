import json

import pytest
from tiny import tiny_spec

from dfer_deploy.errors import SettingError
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import ModelSpec, PromptSpec, TemporalSpec, contract_for


def test_a_spec_survives_json() -> None:
    spec = tiny_spec(depth=3, class_specific=False, position="middle")
    assert spec_from_dict(ModelSpec, json.loads(json.dumps(spec.to_dict()))) == spec


def test_an_unknown_key_suggests_the_nearest() -> None:
    values = tiny_spec().to_dict()
    values["temporal"]["dept"] = 2
    with pytest.raises(SettingError, match=r"unknown key 'dept' in temporal; did you mean 'depth'\?"):
        spec_from_dict(ModelSpec, values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("temporal", "depth"), "1", "temporal.depth is '1', expected int"),
        (("temporal", "depth"), True, "temporal.depth is True, expected int"),
        (("temporal", "depth"), 7, "temporal.depth is 7, expected 0 to 6"),
        (("clip", "vision", "patch_size"), 7, "not a multiple of vision.patch_size"),
        (("clip", "quick_gelu"), 1, "clip.quick_gelu is 1, expected bool"),
        (("prompts", "position"), "begin", "prompts.position is 'begin', expected one of front, middle, end"),
        (("prompts", "class_names"), "joy", "prompts.class_names is 'joy', expected a list"),
        (("prompts", "class_names"), ["a", "a", "b"], "not distinct"),
        (("prompts", "class_names"), ["a", "b"], "3 class texts for 2 class names"),
        (("temperature",), 0, "temperature is 0.0, expected a positive number"),
    ],
)
def test_wrong_values_are_named(path: tuple[str, ...], value: object, message: str) -> None:
    values = tiny_spec().to_dict()
    table = values
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(SettingError, match=message):
        spec_from_dict(ModelSpec, values)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SettingError, match=r"class_names is missing"):
        spec_from_dict(PromptSpec, {"class_texts": ["a", "b"]})


def test_without_texts_the_names_are_the_texts() -> None:
    assert spec_from_dict(PromptSpec, {"class_names": ["a", "b"]}).class_texts == ("a", "b")


def test_a_spec_from_before_there_were_other_classifiers_is_a_text_classifier() -> None:
    values = tiny_spec().to_dict()
    del values["classifier"]
    assert spec_from_dict(ModelSpec, values).classifier == "text"


def test_the_contract_follows_the_spec() -> None:
    contract = contract_for(tiny_spec(), "face")
    assert contract.image_encoder.name == "face_image_encoder"
    assert contract.image_encoder.inputs[0].shape == ("batch", "time", 32, 32, 3)
    assert contract.temporal_head.inputs == contract.image_encoder.outputs
    assert {o.name: o.shape for o in contract.ensemble.outputs} == {
        "logits": ("batch", 3),
        "probabilities": ("batch", 3),
    }


def test_the_defaults_are_the_papers() -> None:
    spec = ModelSpec(prompts=PromptSpec(("a", "b"), ("a", "b")))
    assert (spec.clip.vision.width, spec.clip.vision.layers, spec.clip.vision.patch_size) == (768, 12, 32)
    assert (spec.prompts.contexts, spec.prompts.class_specific, spec.prompts.position) == (8, True, "end")
    assert spec.temporal == TemporalSpec(depth=1, heads=8, head_width=64, mlp_width=1024, max_frames=16)
    assert spec.temperature == 0.01
