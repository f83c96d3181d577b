"""The two ONNX graphs in this process."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dfer_deploy.bundle import Bundle
from dfer_deploy.errors import DferDeployError, missing_extra
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction


class OnnxRuntimePredictor:
    """Runs a bundle's graphs with onnxruntime's CPU provider (a ``Predictor``)."""

    def __init__(
        self, image_encoder: Path, temporal_head: Path, *, name: str = "onnxruntime", threads: int = 0
    ) -> None:
        """Opens both sessions.

        Args:
            image_encoder: ONNX file, frames to frame features.
            temporal_head: ONNX file, frame features to logits and probabilities.
            name: what tables call it.
            threads: intra-op threads; 0 for one per core.
        """
        self.name = name
        self._encoder = _session(image_encoder, threads or len(os.sched_getaffinity(0)))
        # The head is a few milliseconds of work; threads of its own would only get in the encoder's way.
        self._head = _session(temporal_head, 1)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> OnnxRuntimePredictor:
        """The predictor of an opened bundle."""
        name = f"onnxruntime {bundle.manifest.precision}"
        return cls(bundle.image_encoder_onnx, bundle.temporal_head_onnx, name=name)

    def encode(self, frames: Frames) -> Float32:
        (features,) = self._encoder.run(["frame_features"], {"frames": frames})
        return features  # type: ignore[no-any-return]

    def classify(self, frame_features: Float32) -> Prediction:
        logits, probabilities = self._head.run(["logits", "probabilities"], {"frame_features": frame_features})
        return Prediction(logits, probabilities)

    def predict(self, frames: Frames) -> Prediction:
        return self.classify(self.encode(np.ascontiguousarray(frames)))

    def __enter__(self) -> OnnxRuntimePredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._encoder, self._head


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "runtime", "running a bundle in this process") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # As in the served model: threads that wait by spinning take the core from whoever else works on this machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no public base class
        reason = str(error).strip().splitlines()[0][:200]
        raise DferDeployError(f"{path} cannot be loaded by onnxruntime ({reason}); export the bundle again") from error
