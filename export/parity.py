"""The check that stands between the graphs and the bundle: onnxruntime must answer what PyTorch answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.errors import DferDeployError
from dfer_deploy.export.layers import localise
from dfer_deploy.limits import LIMITS
from dfer_deploy.metrics import softmax
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.runtimes.onnxruntime import OnnxRuntimePredictor, open_session
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.runtimes.torch import TorchPredictor
from dfer_deploy.specs import MAX_FRAMES, Precision

BATCHES = (1, 2, 5)
TIMES = (1, 9, MAX_FRAMES)


FEATURES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.1}
"""Largest error of a frame feature, relative to the largest feature. fp16 has 11 bits, and twelve layers add up; this
finds overflow and wrong islands, and whether the loss matters is for ``verify`` to say on real clips."""


def measure_parity(
    model: DferClip, image_encoder: Path, temporal_head: Path, precision: Precision, keep_fp32: Sequence[str] = ()
) -> dict[str, Any]:
    """Compares both graphs with PyTorch on drawn clips, at batches 1, 2, 5 and 1, 9, 16 frames.

    Args:
        model: the checkpoint's model.
        image_encoder: the exported ONNX file.
        temporal_head: the exported ONNX file.
        precision: decides what is accepted: the limits of ``verify``.
        keep_fp32: blocks that are fp32 in graphs of fp16; they change no limit.

    Returns:
        Upper bounds of what was seen, for the manifest: see ``rounded_up``.

    Raises:
        DferDeployError: an answer is not finite, or an error leaves the tolerance; with the block that it comes from.
    """
    limits = LIMITS[precision]
    frames = drawn_clips(max(BATCHES), model.spec.clip.vision.image_size)
    with TorchPredictor(model) as torch_model, OnnxRuntimePredictor(image_encoder, temporal_head) as exported:
        features = torch_model.encode(frames)
        scale = float(np.abs(features).max())
        feature_error = head_error = probability_error = 0.0
        exported_features = features
        # Frames are independent of each other in the encoder, so three of the nine shapes show every batch and time.
        for batch, time in zip(BATCHES, TIMES, strict=True):
            exported_features = exported.encode(frames[:batch, :time])
            _check(exported_features, (batch, time, features.shape[2]), image_encoder)
            feature_error = max(feature_error, _max_error(exported_features, features[:batch, :time]) / scale)
        for batch, time in _shapes():
            expected = torch_model.classify(features[:batch, :time])
            answer = exported.classify(np.ascontiguousarray(features[:batch, :time]))
            _check(answer.logits, expected.logits.shape, temporal_head)
            _check(answer.probabilities, expected.logits.shape, temporal_head)
            head_error = max(head_error, _max_error(answer.logits, expected.logits))
            probability_error = max(probability_error, _max_error(answer.probabilities, softmax(answer.logits)))
        whole = exported.classify(exported_features).logits
        logit_error = _max_error(whole, torch_model.classify(features).logits)
    measured = {
        "image encoder, relative feature error": (feature_error, FEATURES[precision]),
        "temporal head, logit error": (head_error, limits.head_logits),
        "both graphs, logit error": (logit_error, limits.logits),
        "temporal head, probability against the softmax of its logits": (probability_error, limits.probabilities),
    }
    for what, (error, limit) in measured.items():
        if not error <= limit:
            where = localise(model, image_encoder, temporal_head, frames[:1], precision, keep_fp32)
            advice = "this is a bug in dfer-deploy, report it"
            if where.suspect.precision == "fp16":
                kept = ",".join((*keep_fp32, where.suspect.block))
                advice = (
                    f"export with --keep-fp32 {kept} or --precision fp32, or let verify --bisect find which blocks "
                    "must stay fp32"
                )
            raise DferDeployError(
                f"the exported graphs do not answer like PyTorch: {what} is {error:.3g}, expected at most {limit:.3g}; "
                f"{where}; {advice}"
            )
    return {
        "relative_feature_error": rounded_up(feature_error),
        "head_logit_error": rounded_up(head_error),
        "logit_error": rounded_up(logit_error),
        "batches": list(BATCHES),
        "times": list(TIMES),
    }


def measure_stream_parity(model: DferClip, stream_head: Path, precision: Precision) -> dict[str, Any]:
    """Follows drawn streams through the graph that passes its state on, and compares every answer with PyTorch's.

    Every frame's answer is held against the model's for the same window: the frames so far and the newest repeated, or
    the last 16. One stream starts while another is under way, in the same batch, and after 20 frames both start again.

    Args:
        model: the checkpoint's model.
        stream_head: the exported ONNX file.
        precision: decides what is accepted: the limit of ``verify`` for the temporal head.

    Returns:
        An upper bound of what was seen, for the manifest.

    Raises:
        DferDeployError: an error leaves the tolerance.
    """
    limit = LIMITS[precision].head_logits
    clips = drawn_clips(max(BATCHES), model.spec.clip.vision.image_size)
    session = open_session(stream_head, 1)
    error = 0.0
    with TorchPredictor(model) as torch_model:
        # Two streams of 24 frames, out of clips that differ.
        frames = torch_model.encode(clips[:3]).reshape(2, -1, model.spec.clip.embed_dim)
        # What a server's memory may hold before the first frame.
        state = np.full((2, MAX_FRAMES, frames.shape[2]), np.nan, np.float32)
        count = np.full((2, 1), np.nan, np.float32)
        began = [0, 0]
        for time in range(frames.shape[1]):
            starts = (time in (0, 20), time in (0, 3, 20))
            began = [time if is_first else start for is_first, start in zip(starts, began, strict=True)]
            logits, probabilities, state, count = session.run(
                ["logits", "probabilities", "state_out", "count_out"],
                {
                    "frame_features": np.ascontiguousarray(frames[:, time : time + 1]),
                    "start": np.array(starts, np.float32)[:, None],
                    "state_in": state,
                    "count_in": count,
                },
            )
            expected = torch_model.classify(
                np.stack([_window(stream[start : time + 1]) for stream, start in zip(frames, began, strict=True)])
            )
            _check(logits, expected.logits.shape, stream_head)
            _check(probabilities, expected.logits.shape, stream_head)
            error = max(error, _max_error(logits, expected.logits))
    if not error <= limit:
        raise DferDeployError(
            f"the exported graph of a stream does not answer like PyTorch: its logits differ by {error:.3g}, expected "
            f"at most {limit:.3g}; export with --precision fp32"
            + (", and report it: this is a bug in dfer-deploy" if precision == "fp32" else "")
        )
    return {"stream_logit_error": rounded_up(error)}


def _window(features: Float32) -> Float32:
    """The last 16 of the frames so far [T, L], or all of them and then the newest repeated."""
    last = features[-MAX_FRAMES:]
    return np.concatenate([last, np.repeat(last[-1:], MAX_FRAMES - len(last), axis=0)])


def rounded_up(error: float) -> float:
    """The next 1, 2 or 5 × 10ⁿ, so that rounding in the last bits does not change a manifest."""
    if error == 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(error))
    step = next(step for step in (1, 2, 5, 10) if error <= step * power * (1 + 1e-9))
    return float(f"{step * power:.0e}")


def _shapes() -> Iterator[tuple[int, int]]:
    return ((batch, time) for batch in BATCHES for time in TIMES)


def _check(values: Float32, shape: tuple[int, ...], path: Path) -> None:
    if values.shape != shape or values.dtype != np.float32:
        raise RuntimeError(f"{path.name} answers {values.dtype} {values.shape}, the contract says float32 {shape}")


def _max_error(values: Float32, expected: Float32) -> float:
    """Infinity where an answer is not finite, so that it leaves every tolerance."""
    return float(np.abs(values - expected).max()) if np.isfinite(values).all() else math.inf
