"""The runtimes that can run a bundle in this process, on this machine."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.compatibility import gpu_mismatch, tensorrt_mismatch
from dfer_deploy.console import warn
from dfer_deploy.errors import DferDeployError, missing_extra, spelled
from dfer_deploy.hardware import Gpu, ask_cuda_driver
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor, has_cuda_provider, open_session
from dfer_deploy.runtimes.predictor import Predictor

Runtime = Literal["onnxruntime-cpu", "onnxruntime-cuda", "tensorrt"]
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime-cpu", "onnxruntime-cuda", "tensorrt")


@dataclass(frozen=True)
class UsualRuntimes:
    """The default runtimes: onnxruntime on the best device, and TensorRT if the engines run on this machine.

    Attributes:
        runtimes: the runtimes, onnxruntime first.
        no_tensorrt: reason why TensorRT is not among them; empty if it is.
    """

    runtimes: tuple[Runtime, ...]
    no_tensorrt: str


def usual_runtimes(bundle: Bundle, *, host_code_allowed: bool = False) -> UsualRuntimes:
    """Choose the runtimes to compare by default.

    Args:
        bundle: an opened bundle.
        host_code_allowed: let TensorRT execute the code in version-compatible engines.

    Raises:
        DferDeployError: onnxruntime is not installed, or the record of the engines is damaged.
    """
    no_tensorrt = tensorrt_obstacle(bundle, host_code_allowed=host_code_allowed)
    onnxruntime = _usual_onnxruntime(bundle)
    return UsualRuntimes((onnxruntime,) if no_tensorrt else (onnxruntime, "tensorrt"), no_tensorrt)


def usual_runtime(bundle: Bundle, *, host_code_allowed: bool = False) -> Runtime:
    """Choose the default runtime: TensorRT if the engines run on this machine, otherwise onnxruntime.

    onnxruntime need not be installed if TensorRT is chosen.

    Args:
        bundle: an opened bundle.
        host_code_allowed: let TensorRT execute the code in version-compatible engines.

    Raises:
        DferDeployError: neither runtime is available, or the record of the engines is damaged.
    """
    if not tensorrt_obstacle(bundle, host_code_allowed=host_code_allowed):
        return "tensorrt"
    return _usual_onnxruntime(bundle)


def open_predictor(runtime: Runtime, bundle: Bundle, *, host_code_allowed: bool = False) -> Predictor:
    """Open a bundle's predictor in this process.

    Args:
        runtime: the runtime to use.
        bundle: an opened bundle.
        host_code_allowed: let TensorRT execute the code in version-compatible engines.

    Raises:
        DferDeployError: the runtime is not available on this machine, or cannot run this bundle.
    """
    if runtime == "tensorrt":
        try:
            from dfer_deploy.runtimes.tensorrt_predictor import TensorRtPredictor
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise missing_extra("torch", "gpu", "running a TensorRT engine in this process") from error
        return TensorRtPredictor.from_bundle(bundle, host_code_allowed=host_code_allowed)
    return OnnxRuntimePredictor.from_bundle(bundle, "cuda" if runtime == "onnxruntime-cuda" else "cpu")


def tensorrt_obstacle(bundle: Bundle, *, host_code_allowed: bool = False) -> str:
    """Explain why a bundle's engines are not expected to run in this process; the text is empty if they are.

    Args:
        bundle: an opened bundle.
        host_code_allowed: let TensorRT execute the code in version-compatible engines.

    Raises:
        DferDeployError: the record of the engines is damaged.
    """
    if bundle.manifest.target != "tensorrt":
        return f"the bundle is for the target {bundle.manifest.target!r} and has no engines"
    built = bundle.engines
    if built is None:
        return f"the engines are not built; build them with: dfer-deploy build {shlex.quote(str(bundle.path))}"
    if not ask_cuda_driver().gpus:
        return "this machine has no NVIDIA GPU"
    if built.builder.version_compatible and not host_code_allowed:
        allowed = spelled("allow_host_code", True)
        return f"the engines are version-compatible and carry code; allow it with {allowed} if you built them"
    try:
        import torch

        from dfer_deploy.runtimes.tensorrt_engine import import_tensorrt

        version = import_tensorrt().__version__
    except ImportError:
        return "PyTorch is not installed"
    except DferDeployError as error:
        return str(error)
    if not torch.cuda.is_available():
        return "PyTorch cannot use the GPU"
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    here = Gpu(gpu.name, f"{gpu.major}.{gpu.minor}", gpu.total_memory)
    return tensorrt_mismatch(built.builder, version) or gpu_mismatch(built.builder, built.device, here)


def _usual_onnxruntime(bundle: Bundle) -> Runtime:
    # The embedded server runs on the CPU, so it is compared with the same graphs on the CPU.
    if bundle.manifest.target == "embedded" or not has_cuda_provider() or not ask_cuda_driver().gpus:
        return "onnxruntime-cpu"
    try:
        open_session(bundle.temporal_head_onnx, 1, "cuda")
    except DferDeployError as error:
        warn(f"{error}; it runs on the CPU")
        return "onnxruntime-cpu"
    return "onnxruntime-cuda"
