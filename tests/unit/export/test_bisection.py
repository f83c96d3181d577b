"""The search, with real exports and onnxruntime."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tiny import clips_of, overflow_in_fp16, tiny_model

from dfer_deploy.export import bisection
from dfer_deploy.export.bisection import bisect
from dfer_deploy.export.graphs import blocks_beyond_fp16
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.runtimes.predictor import Predictor
from dfer_deploy.runtimes.torch_predictor import TorchPredictor

CLIPS = clips_of(2)


def _gate(model: DferClip, limit: float) -> Callable[[Predictor], Sequence[str]]:
    expected = TorchPredictor(model).predict(CLIPS).logits

    def gate(predictor: Predictor) -> Sequence[str]:
        error = np.abs(predictor.predict(CLIPS).logits - expected).max()
        return () if error <= limit else (f"a logit differs by {error:.3g}",)

    return gate


def test_two_overflowing_blocks_are_found_and_no_other() -> None:
    model = overflow_in_fp16(tiny_model(), "encoder.0", "head.0")
    found = bisect(model, CLIPS[:1], _gate(model, 0.05))
    assert found.keep_fp32 == ("encoder.0", "head.0")
    assert str(found) == "encoder.0, head.0 must stay fp32, all others may be fp16 (5 exports tried)"
    tried = {trial.keep_fp32: not trial.failures for trial in found.trials}
    assert tried == {
        (): False,
        ("patch_embedding", "encoder.0", "encoder.1", "projection", "head.0"): True,
        ("encoder.0",): False,
        ("encoder.0", "head.0"): True,
        ("head.0",): False,
    }


def test_no_block_needs_fp32_where_fp16_passes_and_none_helps_where_fp32_fails() -> None:
    model = tiny_model(depth=0)
    found = bisect(model, CLIPS[:1], _gate(model, 0.05))
    assert (found.keep_fp32, len(found.trials)) == ((), 1)
    other = tiny_model(seed=1, depth=0)
    found = bisect(model, CLIPS[:1], _gate(other, 0.05))
    assert (found.keep_fp32, len(found.trials)) == (None, 2)
    assert "precision is not the reason" in str(found)


def test_a_block_whose_weights_fp16_cannot_hold_is_kept_from_the_start() -> None:
    model = tiny_model(depth=0)
    with torch.no_grad():
        model.image_encoder.transformer.resblocks[1].attn.out_proj.weight[0, 0] = 1e5
    assert blocks_beyond_fp16(model) == ("encoder.1",)
    found = bisect(model, CLIPS[:1], _gate(model, 0.5))
    assert found.keep_fp32 is not None
    assert "encoder.1" in found.keep_fp32
    assert all("encoder.1" in trial.keep_fp32 for trial in found.trials)


@pytest.mark.parametrize("size", [1, 2, 7, 14, 30])
def test_the_shortest_beginning_is_found_in_few_trials(size: int) -> None:
    order = [str(index) for index in range(size)]
    for needed in range(1, size + 1):
        asked: list[int] = []

        def holds(blocks: Sequence[str], needed: int = needed, asked: list[int] = asked) -> bool:
            assert list(blocks) == order[: len(blocks)]
            asked.append(len(blocks))
            return len(blocks) >= needed

        assert bisection._shortest(order, holds) == order[:needed]
        assert len(asked) == len(set(asked)) <= 2 * needed.bit_length() + 1
