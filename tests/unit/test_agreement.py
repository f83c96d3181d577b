"""Two ways of running one bundle, the second of them broken in different ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy.agreement import agreement
from dfer_deploy.bundle import Bundle
from dfer_deploy.limits import LIMITS
from dfer_deploy.runtimes.onnxruntime import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction


class Broken(OnnxRuntimePredictor):
    """The real graphs, with an error in the features or in the probabilities."""

    encoder_error: Callable[[Float32], Float32] = staticmethod(lambda features: features)
    probability_factor = 1.0

    def encode(self, frames: Frames) -> Float32:
        return self.encoder_error(super().encode(frames))

    def classify(self, frame_features: Float32) -> Prediction:
        answer = super().classify(frame_features)
        return Prediction(answer.logits, answer.probabilities * np.float32(self.probability_factor))


@pytest.fixture
def predictor(bundle: Bundle) -> Iterator[OnnxRuntimePredictor]:
    with OnnxRuntimePredictor.from_bundle(bundle) as opened:
        yield opened


@pytest.fixture
def broken(bundle: Bundle) -> Iterator[Broken]:
    with Broken(bundle.image_encoder_onnx, bundle.temporal_head_onnx, name="broken") as opened:
        yield opened


def test_the_same_runtime_agrees_with_itself(predictor: OnnxRuntimePredictor, broken: Broken) -> None:
    for found in agreement([predictor, broken], clips_of(3), LIMITS["fp32"]):
        assert found.failures == ()
        assert found.answers_changed == 0
        assert found.logits is not None
        assert found.logits < 1e-4


def test_another_encoder_is_told_from_another_head(predictor: OnnxRuntimePredictor, broken: Broken) -> None:
    broken.encoder_error = lambda features: features[:, ::-1] + np.float32(1)
    _, found = agreement([predictor, broken], clips_of(3), LIMITS["fp32"])
    assert found.encoder_logits == found.logits
    assert found.head_logits is not None
    assert found.head_logits < 1e-4
    (failure,) = found.failures
    assert failure.startswith("broken: a logit differs by ")


def test_what_is_not_finite_fails(predictor: OnnxRuntimePredictor, broken: Broken) -> None:
    broken.encoder_error = lambda features: features * np.float32("nan")
    _, found = agreement([predictor, broken], clips_of(2), LIMITS["fp16"])
    assert found.logits is None
    assert any("a logit differs by inf" in failure for failure in found.failures)


def test_probabilities_belong_to_their_logits(predictor: OnnxRuntimePredictor, broken: Broken) -> None:
    broken.probability_factor = 0.9
    _, found = agreement([predictor, broken], clips_of(2), LIMITS["fp32"])
    assert "a probability against the softmax" in found.failures[0]
