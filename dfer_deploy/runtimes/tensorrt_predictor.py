"""A predictor that runs the two TensorRT engines of a built bundle in this process."""

from __future__ import annotations

import shlex
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import RuntimeUnavailableError, spelled
from dfer_deploy.runtimes.engine_tensors import pieces
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.runtimes.tensorrt_engine import EngineRunner, import_tensorrt
from dfer_deploy.specs import Contract


class TensorRtPredictor:
    """Runs two plans on the current CUDA device (a ``Predictor``). Batches that are too large are split."""

    def __init__(
        self,
        image_encoder: Path,
        temporal_head: Path,
        contract: Contract,
        *,
        name: str = "TensorRT",
        module: Any = None,
        cuda_graphs: bool = True,
        host_code_allowed: bool = False,
    ) -> None:
        """Load both plans.

        Args:
            image_encoder: plan of the image encoder, frames to frame features.
            temporal_head: plan of the temporal head, frame features to logits and probabilities.
            contract: the graphs whose inputs and outputs the plans must have.
            name: name in tables.
            module: a module with the API of ``tensorrt``; None imports ``tensorrt``.
            cuda_graphs: record the launches for a shape once and replay them.
            host_code_allowed: let TensorRT execute the code in version-compatible plans.

        Raises:
            DferDeployError: TensorRT or a GPU is not available, or a plan is missing, refused or of another model.
        """
        self.name = name
        self._lock = threading.Lock()
        module = import_tensorrt() if module is None else module
        with ExitStack() as stack:
            self._encoder, self._head = (
                stack.enter_context(
                    EngineRunner(module, plan, spec, cuda_graphs=cuda_graphs, host_code_allowed=host_code_allowed)
                )
                for plan, spec in ((image_encoder, contract.image_encoder), (temporal_head, contract.temporal_head))
            )
            self._engines = stack.pop_all()

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, *, cuda_graphs: bool = True, host_code_allowed: bool = False
    ) -> TensorRtPredictor:
        """Open the predictor of a bundle whose engines are built.

        Raises:
            DferDeployError: the engines are not built, contain code although ``host_code_allowed`` is not set, or
                cannot be loaded.
        """
        if bundle.manifest.target != "tensorrt":
            raise RuntimeUnavailableError(
                f"{bundle.path} is for the target {bundle.manifest.target!r} and has no TensorRT engines; export with "
                f"{spelled('target', 'tensorrt')}"
            )
        built = bundle.engines
        if built is None:
            raise RuntimeUnavailableError(
                f"the engines of {bundle.path} are not built; build them with: dfer-deploy build "
                f"{shlex.quote(str(bundle.path))}"
            )
        if built.builder.version_compatible and not host_code_allowed:
            raise RuntimeUnavailableError(
                f"the engines of {bundle.path} are version-compatible, so loading them executes code that they carry; "
                f"allow it with {spelled('allow_host_code', True)} if you built them"
            )
        encoder, head = (
            bundle.path / built.engines[graph.name].plan
            for graph in (bundle.contract.image_encoder, bundle.contract.temporal_head)
        )
        name = f"TensorRT {bundle.manifest.precision_name}"
        return cls(
            encoder,
            head,
            bundle.contract,
            name=name,
            cuda_graphs=cuda_graphs,
            host_code_allowed=host_code_allowed,
        )

    def encode(self, frames: Frames) -> Float32:
        with self._lock:
            return np.concatenate(
                [
                    self._encoder.run(self._encoder.upload(frames[piece]), stays=True)[0].cpu().numpy()
                    for piece in pieces(len(frames), self._encoder.shapes.max_batch)
                ]
            )

    def classify(self, frame_features: Float32) -> Prediction:
        with self._lock:
            return _joined(
                [
                    _on_host(self._head.run(self._head.upload(frame_features[piece]), stays=True))
                    for piece in pieces(len(frame_features), self._head.shapes.max_batch)
                ]
            )

    def predict(self, frames: Frames) -> Prediction:
        largest = min(self._encoder.shapes.max_batch, self._head.shapes.max_batch)
        with self._lock:
            return _joined(
                [
                    _on_host(self._predict(self._encoder.upload(frames[piece]), stays=True))
                    for piece in pieces(len(frames), largest)
                ]
            )

    def predict_tensors(self, frames: Tensor, *, stays: bool = False) -> tuple[Tensor, Tensor]:
        """Predict from device memory to device memory without a copy, after the current stream's work.

        Args:
            frames: uint8 [B, T, H, W, 3] on the engines' device, contiguous, B at most the engines' largest batch.
            stays: whether the tensor's memory stays valid as long as this predictor, so that CUDA graphs may refer to
                it.

        Returns:
            Logits and probabilities, float32 [B, C]: views of the engine's own memory. Read or clone them before the
            next call of any method.

        Raises:
            DferDeployError: the tensor does not fit, or TensorRT refuses to run.
        """
        with self._lock:
            return self._predict(frames, stays=stays)

    def _predict(self, frames: Tensor, *, stays: bool) -> tuple[Tensor, Tensor]:
        (features,) = self._encoder.run(frames, stays=stays)
        # The features are in the encoder's own memory, which stays valid.
        logits, probabilities = self._head.run(features, stays=True)
        return logits, probabilities

    def __enter__(self) -> TensorRtPredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engines.__exit__(kind, error, traceback)


def _on_host(answer: tuple[Tensor, ...]) -> Prediction:
    logits, probabilities = answer
    return Prediction(logits.cpu().numpy(), probabilities.cpu().numpy())


def _joined(answers: list[Prediction]) -> Prediction:
    return Prediction(
        np.concatenate([answer.logits for answer in answers]),
        np.concatenate([answer.probabilities for answer in answers]),
    )
