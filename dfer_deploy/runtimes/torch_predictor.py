"""The checkpoint itself in PyTorch: the reference that the other runtimes are compared with."""

from __future__ import annotations

from types import TracebackType

import torch

from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.specs import PromptPosition


class TorchPredictor:
    """Runs ``DferClip`` in fp32, on CUDA if it is available (a ``Predictor``)."""

    def __init__(self, model: DferClip) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = f"PyTorch fp32 {self.device}"
        self.model = model.eval().to(self.device)

    def encode(self, frames: Frames) -> Float32:
        # On a GPU, PyTorch would by default round the operands of convolutions to the 11 bits of TF32.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            images = images_from_frames(torch.from_numpy(frames).to(self.device))
            return self.model.encode_frames(images).cpu().numpy()

    def classify(self, frame_features: Float32, position: PromptPosition | None = None) -> Prediction:
        """Classify frame features float32 [B, T, L]; ``position`` overrides the position of the prompts' contexts."""
        with torch.inference_mode():
            logits = self.model.classify(torch.from_numpy(frame_features).to(self.device), position)
            return Prediction(logits.cpu().numpy(), torch.softmax(logits, dim=-1).cpu().numpy())

    def predict(self, frames: Frames) -> Prediction:
        return self.classify(self.encode(frames))

    def __enter__(self) -> TorchPredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self.model
