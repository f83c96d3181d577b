"""The benchmarks that look into the graphs."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
from against_reference import REFERENCE, logit_errors, reference
from common import parser, rotated
from fma_peak import STEPS, multiply_adds
from roofline import PRODUCTS_NAME, count, operator_shares
from tiny import clips_of, tiny_model

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Frames, Prediction
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.verification.limits import ROUNDINGS
from dfer_deploy.verification.rounding import rounding_costs


def test_every_round_begins_with_another_contestant() -> None:
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_the_reference_waits_as_it_does_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    parser("against_reference.py", "")
    assert "OMP_WAIT_POLICY" not in os.environ


def test_operations_are_those_of_the_matrix_products(own_checkpoint: Path) -> None:
    head: dict[str, Any] = {"graph": "temporal head", "batch": 2, "time": 9, "image_size": 32}
    encoder: dict[str, Any] = {"graph": "image encoder", "batch": 2, "time": 3, "image_size": 32}
    count(own_checkpoint, [head, encoder])
    tokens, width, inner, hidden = 10, 64, 512, 1024
    products = 4 * tokens * width * inner + 2 * tokens**2 * inner + 2 * tokens * width * hidden
    assert head["flop"] == 2 * 2 * (products + width * 3)  # the classifier has three classes
    # Four patches of 16 × 16 × 3 and the class token; two blocks of width 64 with an MLP of four times that.
    tokens, inner, hidden = 5, 64, 256
    block = 4 * tokens * width * inner + 2 * tokens**2 * inner + 2 * tokens * width * hidden
    assert encoder["flop"] == 2 * 6 * (4 * 768 * width + 2 * block + width * 64)
    assert encoder["bytes"] > 6 * 32 * 32 * 3


def test_the_reference_does_the_same_work(bundle: Bundle) -> None:
    clips = clips_of(2)
    with OnnxRuntimePredictor.from_bundle(bundle) as exported:
        answers = {REFERENCE: reference(tiny_model())(clips), "onnxruntime": exported.predict(clips).logits}
    assert logit_errors(answers, 0.01)["onnxruntime"] < 0.01
    with pytest.raises(RuntimeError, match="onnxruntime does not compute the same"):
        logit_errors(answers | {"onnxruntime": answers["onnxruntime"] + 0.02}, 0.01)
    with pytest.raises(RuntimeError):
        logit_errors(answers | {"onnxruntime": answers["onnxruntime"] * np.nan}, 0.01)


def test_parity_sees_another_model(bundle: Bundle) -> None:
    clips = clips_of(4)
    cost = rounding_costs(tiny_model(), clips)["fp32"]
    drifted = tiny_model()
    with torch.no_grad():
        drifted.image_encoder.proj.mul_(1.001)
    with TorchPredictor(tiny_model()) as truth, OnnxRuntimePredictor.from_bundle(bundle) as exported:
        features, logits = truth.encode(clips), truth.predict(clips).logits
        same = parity.differences(exported, clips, features, logits, cost)
        other = parity.differences(exported, clips, features, logits[::-1], cost)
        moved = parity.differences(TorchPredictor(drifted), clips, features, logits, cost)
    assert parity.within_limit(same, "fp32")
    assert not parity.within_limit(same | {"softmax_error": same["softmax_error"] + 0.1}, "fp32")
    assert not parity.within_limit(same | {"logit_error": float("nan")}, "fp32")
    assert same["logit_error"] < 0.01
    assert same["agreement"] == 1
    assert same["feature_error"] < 1e-4
    assert 0 < same["roundings"] < ROUNDINGS["fp32"]
    assert other["logit_error"] > 0.01
    assert other["roundings"] > ROUNDINGS["fp32"]
    assert moved["logit_error"] < 0.01, "of the logits alone it would not be seen"
    assert moved["roundings"] > ROUNDINGS["fp32"]
    assert not parity.within_limit(moved, "fp32")


class Skewed(TorchPredictor):
    """Right logits with probabilities that are not theirs, for single clips only."""

    def predict(self, frames: Frames) -> Prediction:
        answer = super().predict(frames)
        return answer if len(frames) > 1 else Prediction(answer.logits, np.full_like(answer.logits, 1 / 3))


def test_parity_sees_wrong_probabilities() -> None:
    clips = clips_of(4)
    with Skewed(tiny_model()) as skewed:
        seen = parity.differences(
            skewed,
            clips,
            skewed.encode(clips),
            skewed.predict(clips).logits,
            rounding_costs(tiny_model(), clips)["fp32"],
        )
    assert seen["logit_error"] < 0.01
    assert not parity.within_limit(seen, "fp32")


def test_the_shares_of_the_operators_are_those_of_every_run(bundle: Bundle, tmp_path: Path) -> None:
    shares = operator_shares(bundle.image_encoder_onnx, clips_of(1), tmp_path, runs=3)
    assert {"LayerNormalization", "Softmax", PRODUCTS_NAME} < set(shares)
    assert not {"MatMul", "Gemm", "FusedMatMul"} & set(shares)
    assert [sum(values) for values in zip(*shares.values(), strict=True)] == pytest.approx([1, 1, 1])
    assert 0 < min(shares[PRODUCTS_NAME]) < 1


def test_the_fma_peak_counts_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the twelve chains ends at 1, the fixed point of 0.5 x + 0.5."""
    found = multiply_adds(tmp_path)
    if found is None:
        pytest.skip("no C compiler works here")
    work, flop = found
    answers = work()
    assert set(answers) == {12.0}
    assert flop / len(answers) / STEPS in (2 * 12 * 4, 2 * 12 * 8, 2 * 12 * 16)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert multiply_adds(tmp_path) is None
