"""The classifiers of the model: texts computed as rarely as possible, a linear head, texts that the clip moves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model
from torch import Tensor

from dfer_deploy.errors import CheckpointError
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.model.prompts import TextEncoder


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each run of the text transformer: whether it kept activations for a gradient."""
    calls: list[bool] = []
    forward = TextEncoder.forward

    def watched(self: TextEncoder, prompts: Tensor, end_of_text: Tensor) -> Tensor:
        features = forward(self, prompts, end_of_text)
        calls.append(features.requires_grad)
        return features

    monkeypatch.setattr(TextEncoder, "forward", watched)
    return calls


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_contexts_that_learn_need_the_text_encoder_in_every_step(encodings: list[bool]) -> None:
    model = tiny_model()
    for _ in range(2):
        model(images()).sum().backward()
    assert encodings == [True, True]
    assert model.prompt_learner.ctx.grad is not None


@pytest.mark.parametrize("changes", [{"contexts": 0}, {"frozen": True}], ids=str)
def test_texts_that_do_not_learn_are_encoded_once(encodings: list[bool], changes: dict[str, Any]) -> None:
    frozen = changes.pop("frozen", False)
    model = tiny_model(**changes)
    model.prompt_learner.requires_grad_(not frozen)
    with torch.inference_mode():  # an evaluation before the first step must not spoil the features for training
        model(images())
    for _ in range(2):
        model(images()).sum().backward()
    assert encodings == [False]
    assert model.image_encoder.conv1.weight.grad is not None


def test_an_evaluation_encodes_the_texts_once_and_again_after_a_step(encodings: list[bool]) -> None:
    model = tiny_model()
    with torch.inference_mode():
        first = model(images())
        model(images())
    assert encodings == [False]
    with torch.no_grad():
        model.prompt_learner.ctx.add_(1.0)
    with torch.inference_mode():
        second = model(images())
    assert encodings == [False, False]
    assert not torch.equal(first, second)
    model.load_state_dict(tiny_model().state_dict())
    with torch.inference_mode():
        assert torch.equal(model(images()), first)
        assert torch.equal(copy.deepcopy(model)(images()), first)


def test_texts_stop_behind_the_longest_prompt_and_change_nothing() -> None:
    model = tiny_model()
    embedding = model.text_encoder.token_embedding
    prompts = model.prompt_learner(embedding)
    assert prompts.shape[1] < 30
    padding = embedding(torch.zeros(len(prompts), 77 - prompts.shape[1], dtype=torch.long))
    with torch.inference_mode():
        whole = model.text_encoder(torch.cat([prompts, padding], dim=1), model.prompt_learner.end_of_text)
        torch.testing.assert_close(F.normalize(whole, dim=-1), model.encode_text(), atol=1e-6, rtol=0)


def test_a_linear_head_is_w_v_plus_b_on_the_video_feature_as_it_is(encodings: list[bool]) -> None:
    model = tiny_model(classifier="linear", depth=0)
    assert model.head is not None
    with torch.inference_mode():
        features = model.encode_frames(images())
        expected = features.mean(dim=1) @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(images()), expected)
    assert not encodings
    with pytest.raises(CheckpointError, match="'linear', which has no text features"):
        model.encode_text()


@pytest.mark.parametrize("class_specific", [True, False])
@pytest.mark.parametrize("position", ["front", "middle", "end"])
def test_co_coop_adds_one_shift_per_clip_to_every_context(class_specific: bool, position: str) -> None:
    """Against one plain model for each clip, with the shift already in its contexts."""
    changes: dict[str, Any] = {"depth": 0, "class_specific": class_specific, "position": position}
    # With another seed every hidden unit may be off for every clip, and there is no shift at all.
    model = tiny_model(seed=2, classifier="image_conditioned_text", **changes)
    plain = tiny_model(**changes)
    state = {name: tensor for name, tensor in model.state_dict().items() if "meta_net" not in name}
    meta_net = model.prompt_learner.meta_net
    assert meta_net is not None
    hidden, out = meta_net[0], meta_net[2]
    assert (hidden.out_features, out.out_features) == (64 // 16, 64)
    with torch.inference_mode():
        answers = model(images(3))
        for answer, clip in zip(answers, images(3), strict=True):
            video = F.normalize(model.encode_frames(clip[None]).mean(dim=1), dim=-1)[0]
            active = F.relu(video @ hidden.weight.T + hidden.bias)
            assert active.any()
            shift = active @ out.weight.T + out.bias
            plain.load_state_dict(state | {"prompt_learner.ctx": model.prompt_learner.ctx + shift})
            torch.testing.assert_close(answer, plain(clip[None])[0], atol=1e-3, rtol=0)
    assert answers.std(dim=0).min() > 0


def test_co_coop_learns_contexts_and_shift(encodings: list[bool]) -> None:
    model = tiny_model(seed=2, classifier="image_conditioned_text", depth=0)
    model(images())[:, 0].sum().backward()
    assert encodings == [True]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.prompt_learner.parameters())


@pytest.mark.parametrize("classifier", ["text", "linear", "image_conditioned_text"])
def test_logits_are_fp32_within_autocast(classifier: str) -> None:
    model: DferClip = tiny_model(classifier=classifier)
    with torch.inference_mode():
        expected = model(images())
        with torch.autocast("cpu", torch.bfloat16):
            found = model(images())
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * expected.abs().max() + 1
