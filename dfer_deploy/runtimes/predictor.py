"""The protocol of a predictor, which PyTorch, onnxruntime, TensorRT and a served model implement."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
"""Clips, uint8 [B, T, H, W, 3], RGB in [0, 255], H = W = the model's image size, 1 ≤ T ≤ 16."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """Answers for B clips: ``logits`` and ``probabilities``, both float32 [B, C]."""

    logits: Float32
    probabilities: Float32


class Predictor(Protocol):
    """A model that answers batches of clips. Leaving its context releases sessions, connections and threads."""

    @property
    def name(self) -> str:
        """The name in tables, for example ``onnxruntime fp32``."""
        ...

    def encode(self, frames: Frames) -> Float32:
        """Run the image encoder alone: frames [B, T, H, W, 3] to frame features [B, T, L]."""
        ...

    def classify(self, frame_features: Float32) -> Prediction:
        """Run the temporal head alone: frame features [B, T, L] to a prediction."""
        ...

    def predict(self, frames: Frames) -> Prediction:
        """Run both: frames [B, T, H, W, 3] to a prediction."""
        ...

    def __enter__(self) -> Predictor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
