"""A predictor that runs a bundle's two ONNX graphs in this process."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import RuntimeUnavailableError, missing_extra
from dfer_deploy.machine.cgroups import usable_cores
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction

Device = Literal["cpu", "cuda"]


class OnnxRuntimePredictor:
    """Runs a bundle's graphs with onnxruntime, on the CPU or with its CUDA provider (a ``Predictor``)."""

    def __init__(
        self,
        image_encoder: Path,
        temporal_head: Path,
        *,
        name: str = "onnxruntime",
        threads: int = 0,
        device: Device = "cpu",
    ) -> None:
        """Open both sessions.

        Args:
            image_encoder: ONNX file of the image encoder, frames to frame features.
            temporal_head: ONNX file of the temporal head, frame features to logits and probabilities.
            name: name in tables.
            threads: number of the image encoder's intra-op threads; 0 for one per core.
            device: device of the graphs; ``cuda`` is the first visible GPU and never falls back to the CPU.

        Raises:
            DferDeployError: a file cannot be loaded, or onnxruntime cannot use the device.
        """
        self.name = name
        self._encoder = open_session(image_encoder, threads, device)
        # The head takes a few milliseconds, and more threads would slow down the encoder's.
        self._head = open_session(temporal_head, 1, device)

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: Device = "cpu") -> OnnxRuntimePredictor:
        """Open the predictor of an opened bundle.

        Raises:
            DferDeployError: a graph cannot be loaded, or onnxruntime cannot use the device.
        """
        name = f"onnxruntime {bundle.manifest.precision_name}{' CUDA' if device == 'cuda' else ''}"
        return cls(bundle.image_encoder_onnx, bundle.temporal_head_onnx, name=name, device=device)

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


def has_cuda_provider() -> bool:
    """Check whether the installed onnxruntime was built with CUDA. The machine may still lack a usable GPU.

    Raises:
        DferDeployError: onnxruntime is not installed.
    """
    return "CUDAExecutionProvider" in _onnxruntime().get_available_providers()


def open_session(path: Path, threads: int, device: Device = "cpu", *, profile: Path | None = None) -> Any:
    """Open an onnxruntime session.

    Source: onnxruntime's documentation, "CUDA Execution Provider" and its Python API.

    Args:
        path: ONNX file.
        threads: number of intra-op threads; 0 for one per core.
        device: device of the graph.
        profile: prefix of the name of a file for the time of every operator. The session's ``end_profiling`` writes the
            file and returns its name.

    Raises:
        DferDeployError: the file cannot be loaded, or onnxruntime cannot use the device.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    # onnxruntime's own default counts cores that this process may not use, and pins threads to them.
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # As in the served image encoder: threads that spin for milliseconds would take cores from others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    providers: list[Any] = ["CPUExecutionProvider"]
    said = ""
    if device == "cuda":
        if not has_cuda_provider():
            raise RuntimeUnavailableError(
                "the installed onnxruntime knows no CUDA; in its place install the GPU package: "
                "pip uninstall onnxruntime; pip install onnxruntime-gpu"
            )
        # TF32 would round the operands of fp32 matrix products to 11 bits.
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
        said = _preloaded(onnxruntime)
    try:
        # The fallback would use the CPU without a message, also later, when a GPU fails.
        session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no public base class
        reason = str(error).strip().splitlines()[0][:200]
        advice = "export the bundle again" if device == "cpu" else "see what is missing with: dfer-deploy doctor"
        raise RuntimeUnavailableError(
            f"{path} cannot be loaded by onnxruntime on {device.upper()} ({reason}); {advice}"
        ) from error
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeUnavailableError(
            f"onnxruntime {onnxruntime.__version__} fell back to the CPU{f' ({said})' if said else ''}: its CUDA "
            "provider does not start; see what is missing with: dfer-deploy doctor"
        )
    return session


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "runtime", "running a bundle in this process") from error
    return onnxruntime


def _preloaded(onnxruntime: Any) -> str:
    """Load CUDA and cuDNN from NVIDIA's packages, where the system's loader does not look; return the messages."""
    if not hasattr(onnxruntime, "preload_dlls"):  # before 1.21
        return ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls()
    return " ".join(printed.getvalue().split())[:200]
