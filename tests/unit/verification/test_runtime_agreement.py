"""Two ways of running one bundle, the second of them broken in different ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.verification.limits import LIMITS
from dfer_deploy.verification.runtime_agreement import agreement


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
    first, second = found.failures
    assert first.startswith("broken: a logit differs by ")
    assert second.startswith("broken: the frame features err by ")


class Wrong(OnnxRuntimePredictor):
    """The real graphs, shown other frames."""

    change: Callable[[Frames], Frames] = staticmethod(lambda frames: frames)

    def encode(self, frames: Frames) -> Float32:
        return super().encode(np.ascontiguousarray(self.change(frames)))


def test_wrong_frames_fail_in_fp16_though_logits_barely_depend_on_the_clip(
    bundle: Bundle, own_checkpoint: Path, tmp_path: Path
) -> None:
    half, _ = export_to_folder(own_checkpoint, tmp_path / "half", ExportOptions("embedded", precision="fp16"))
    files = half.image_encoder_onnx, half.temporal_head_onnx
    with OnnxRuntimePredictor.from_bundle(half) as right, Wrong(*files, name="wrong") as wrong:
        for change in (lambda frames: frames[..., ::-1], lambda frames: frames[:, ::-1], lambda frames: frames // 2):
            wrong.change = change
            (failure,) = agreement([right, wrong], clips_of(3), LIMITS["fp16"], time_steps=(16,))[1].failures
            assert failure.startswith("wrong: the frame features err by ")
        # Another precision is another rounding, and no failure.
        with OnnxRuntimePredictor.from_bundle(bundle) as exact:
            found = agreement([exact, right], clips_of(3), LIMITS["fp16"])[1]
    assert found.failures == ()
    assert found.features is not None
    assert 1e-4 < found.features < 0.05


@pytest.mark.parametrize(
    "is_wrong",
    [lambda frames: frames.shape[1] == 9, lambda frames: frames.shape[1] == 1, lambda frames: len(frames) == 1],
    ids=["9 frames", "1 frame", "1 clip"],
)
def test_an_engine_that_is_wrong_for_one_shape_only_fails(
    bundle: Bundle, predictor: OnnxRuntimePredictor, is_wrong: Callable[[Frames], bool]
) -> None:
    with Wrong(bundle.image_encoder_onnx, bundle.temporal_head_onnx, name="wrong") as wrong:
        wrong.change = lambda frames: frames[..., ::-1] if is_wrong(frames) else frames
        (failure,) = agreement([predictor, wrong], clips_of(3), LIMITS["fp32"])[1].failures
    assert failure.startswith("wrong: a logit differs by ")


def test_what_is_not_finite_fails(predictor: OnnxRuntimePredictor, broken: Broken) -> None:
    broken.encoder_error = lambda features: features * np.float32("nan")
    _, found = agreement([predictor, broken], clips_of(2), LIMITS["fp16"])
    assert found.logits is None
    assert any("a logit differs by inf" in failure for failure in found.failures)


def test_probabilities_belong_to_their_logits(predictor: OnnxRuntimePredictor, broken: Broken) -> None:
    broken.probability_factor = 0.9
    _, found = agreement([predictor, broken], clips_of(2), LIMITS["fp32"])
    assert "a probability against the softmax" in found.failures[0]
