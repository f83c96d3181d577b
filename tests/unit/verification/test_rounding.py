from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import clips_of, tiny_model

from dfer_deploy.errors import SettingError
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.verification.limits import LIMITS, ROUNDINGS, Rounding
from dfer_deploy.verification.rounding import rounded, rounded_copy, rounding_costs


def test_only_the_named_blocks_are_rounded_to_fp16_and_layer_norm_never() -> None:
    model = tiny_model(depth=2)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    half = {
        "image_encoder.conv1.": "patch_embedding",
        "image_encoder.transformer.resblocks.1.": "encoder.1",
        "temporal_net.blocks.0.": "head.0",
    }
    coarse = set()
    for name, weight in rounded_copy(model, tuple(half.values())).named_parameters():
        moved = ((weight.double() - before[name].double()).abs() / before[name].double().abs().clamp_min(1e-30)).max()
        assert moved <= 2.0**-11 * 1.001
        if moved > 2.0**-22:
            coarse.add(name)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    of_blocks = {name for name in before if name.startswith(tuple(half))}
    # A bias of zero stays zero.
    expected = {name for name in of_blocks if not any(n in name for n in (".ln_", ".norm_")) and before[name].any()}
    assert coarse == expected


def test_rounding_costs_a_thousand_times_more_in_fp16_and_the_same_every_time() -> None:
    model, clips = tiny_model(), clips_of(2)
    costs = rounding_costs(model, clips)
    assert 1e3 < costs["fp16"].features / costs["fp32"].features < 2e4
    assert 10 < costs["fp16"].head_logits / costs["fp32"].head_logits < 2e4
    assert rounding_costs(model, clips) == costs


def test_weights_move_up_and_down_by_all_that_rounding_can_move_them() -> None:
    ones = torch.ones(10_000)
    moved = (rounded(ones, "fp16", torch.Generator().manual_seed(0)) - 1) / 2.0**-11
    assert -1 <= moved.min() < -0.99
    assert 0.99 < moved.max() <= 1
    assert abs(moved.mean()) < 0.03
    assert moved.std() == pytest.approx(1 / math.sqrt(3), rel=0.02)


def test_costs_are_root_mean_squares_over_clips_and_draws_of_a_rounded_copy_and_the_head_gets_right_features() -> None:
    model, clips = tiny_model(), clips_of(3)
    half = ("patch_embedding", "encoder.0", "encoder.1", "projection", "head.0")
    truth, moved = TorchPredictor(model), TorchPredictor(rounded_copy(model, half))
    features = truth.encode(clips)
    of_logits = []
    for seed in range(8):
        moved.model.temporal_net = rounded_copy(model.temporal_net, half, "temporal_net.", seed)
        of_logits.append(moved.classify(features).logits - truth.classify(features).logits)
    assert not np.array_equal(of_logits[0], of_logits[1])
    cost = rounding_costs(model, clips)["fp16"]
    assert cost.features == pytest.approx(np.sqrt(np.mean((moved.encode(clips) - features) ** 2)), rel=1e-5)
    assert cost.head_logits == pytest.approx(np.sqrt(np.mean(np.stack(of_logits) ** 2)), rel=1e-5)


def test_errors_are_held_against_multiples_of_rounding() -> None:
    cost = Rounding(features=0.5, head_logits=0.25)
    for precision, limits in LIMITS.items():
        times = ROUNDINGS[precision]
        assert limits.rounding_failures(Rounding(0.5 * times, 0.25 * times), cost) == []
        (failure,) = limits.rounding_failures(Rounding(0.5 * times, 0.2501 * times), cost)
        assert failure.startswith("logits of the temporal head differ by ")
        (failure,) = limits.rounding_failures(Rounding(0.5001 * times, 0), cost)
        assert failure.startswith("frame features differ by ")
    errors = np.array([[3, 4]], np.float32)
    assert Rounding(1.0, 1.0).multiples_of(cost) == 4
    assert Rounding(3.0, 1.0).multiples_of(cost) == 6
    for infinite in (Rounding(math.inf, 0), Rounding(0, math.inf)):
        assert infinite.multiples_of(cost) == infinite.multiples_of(infinite) == cost.multiples_of(infinite) == math.inf
    assert Rounding.of(errors, errors * 0) == Rounding(math.sqrt(12.5), 0)
    nothing = np.array([np.nan], np.float32)
    assert len(LIMITS["fp16"].rounding_failures(Rounding.of(nothing, nothing), cost)) == 2
    # Rounding that moves a model without bounds explains nothing.
    unbounded = Rounding.of(nothing, nothing)
    for error in (Rounding(0, 0), unbounded):
        assert len(LIMITS["fp16"].rounding_failures(error, unbounded)) == 2
    with pytest.raises(SettingError, match="the error features is -1"):
        Rounding(-1, 0)
