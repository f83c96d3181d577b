"""The check before a bundle is written: onnxruntime must give the same answers as PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.clips.sampling import padded
from dfer_deploy.errors import BundleError, spelled
from dfer_deploy.export.layers import localise
from dfer_deploy.metrics import softmax
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor, open_session
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.specs import MAX_FRAMES, GraphSpec, Precision
from dfer_deploy.verification.blocks import BlockError
from dfer_deploy.verification.limits import LIMITS

BATCHES = (1, 2, 5)
"""Numbers of clips that are tried."""

TIMES = (1, 9, MAX_FRAMES)
"""Numbers of frames that are tried."""


FEATURES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.1}
"""Largest error of a frame feature, relative to the largest feature. fp16 has 11 bits, and the errors of twelve
layers add up. This limit finds overflow and wrong precisions; ``verify`` decides on real clips whether the loss
matters."""


def measure_parity(
    model: DferClip, image_encoder: Path, temporal_head: Path, precision: Precision, keep_fp32: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare both graphs with PyTorch on drawn clips, with batches of 1, 2 and 5 and 1, 9 and 16 frames.

    Args:
        model: the checkpoint's model.
        image_encoder: path of the exported ONNX file.
        temporal_head: path of the exported ONNX file.
        precision: precision of the graphs, which selects the limits of ``verify``.
        keep_fp32: blocks that are fp32 in fp16 graphs. They do not change the limits.

    Returns:
        Upper bounds of the measured errors, for the manifest; see ``rounded_up``.

    Raises:
        DferDeployError: an answer is not finite, or an error exceeds the tolerance; the message names the block.
    """
    limits = LIMITS[precision]
    frames = drawn_clips(max(BATCHES), model.spec.clip.vision.image_size)
    with TorchPredictor(model) as torch_model, OnnxRuntimePredictor(image_encoder, temporal_head) as exported:
        features = torch_model.encode(frames)
        scale = float(np.abs(features).max())
        feature_error = head_error = probability_error = 0.0
        exported_features = features
        # The encoder treats frames independently, so three of the nine shapes cover every batch and time.
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
            raise BundleError(
                f"the exported graphs do not answer like PyTorch: {what} is {error:.3g}, expected at most {limit:.3g}; "
                f"{where}; {_advice(where.suspect, keep_fp32)}"
            )
    return {
        "relative_feature_error": rounded_up(feature_error),
        "head_logit_error": rounded_up(head_error),
        "logit_error": rounded_up(logit_error),
        "batches": list(BATCHES),
        "times": list(TIMES),
    }


def _advice(suspect: BlockError, keep_fp32: Sequence[str]) -> str:
    """Return what to do about a block that leaves its tolerance."""
    if suspect.precision != "fp16":
        return "this is a bug in dfer-deploy, report it"
    kept = spelled("keep_fp32", (*keep_fp32, suspect.block))
    return (
        f"export with {kept} or {spelled('precision', 'fp32')}, or let verify find with {spelled('bisect', True)} "
        "which blocks must stay fp32"
    )


def check_window(path: Path, spec: GraphSpec, encoder_id: int) -> None:
    """Check that the graph of a stream's window copies every feature bit by bit, whatever count a client sends.

    Args:
        path: path of the exported ONNX file.
        spec: ``contract.window``.
        encoder_id: the id that the graph must return.

    Raises:
        RuntimeError: the graph does something else, which is a bug.
    """
    _, recent, _ = spec.inputs
    earlier, width = (int(size) for size in recent.shape[1:])
    counts = np.array([-5, *range(earlier + 1), earlier + 9, 2**31 - 1], np.int32)
    random = np.random.default_rng(0)
    newest = random.standard_normal((len(counts), 1, width)).astype(np.float32)
    before = random.standard_normal((len(counts), earlier, width)).astype(np.float32)
    used = np.clip(counts, 0, earlier).tolist()
    expected = [padded([*before[row, :count], newest[row, 0]], earlier + 1) for row, count in enumerate(used)]
    for row, count in enumerate(used):
        before[row, count:] = np.nan  # clients need not fill unused rows
    feeds = dict(zip((tensor.name for tensor in spec.inputs), (newest, before, counts[:, None]), strict=True))
    window, ids = open_session(path, 1).run([tensor.name for tensor in spec.outputs], feeds)
    if not (np.array_equal(window, expected) and np.array_equal(ids, np.full((len(counts), 1), encoder_id, np.int32))):
        raise RuntimeError(f"{path.name} does not join the features of a stream as it must")


def rounded_up(error: float) -> float:
    """Round up to 1, 2 or 5 × 10ⁿ, so that rounding in the last bits does not change a manifest."""
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
    """Return the largest absolute error, or infinity if an answer is not finite, so that it exceeds every tolerance."""
    return float(np.abs(values - expected).max()) if np.isfinite(values).all() else math.inf
