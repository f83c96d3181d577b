"""One TensorRT engine, run on PyTorch tensors in device memory.

The module is written for the Python API of TensorRT 10.12 to 11.4, in which failures are return values: see "Runtime",
"ICudaEngine" and "IExecutionContext" in NVIDIA's TensorRT Python API, and "CUDA Graphs" in the chapter on performance.
It has not been run on a machine with a GPU yet; run ``tests/gpu`` there first.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dfer_deploy.bundles.compatibility import version_numbers
from dfer_deploy.bundles.engine_records import OLDEST_TENSORRT
from dfer_deploy.console import warn
from dfer_deploy.errors import DferDeployError, EngineError, RuntimeUnavailableError, missing_extra
from dfer_deploy.runtimes.engine_tensors import EngineTensor, ShapeRange, check_tensors
from dfer_deploy.specs import GraphSpec, TensorSpec, require

if TYPE_CHECKING:
    import tensorrt as trt

MAX_GRAPHS = 8
"""Limits the CUDA graphs of an engine, each of which holds an execution context. Further shapes run without a graph."""

_ALIGNMENT = 256
"""Alignment in bytes of every address that TensorRT gets (``IExecutionContext::setTensorAddress``)."""

_TORCH_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


def import_tensorrt() -> Any:
    """Import the module ``tensorrt``.

    Raises:
        DferDeployError: the module is not installed, cannot be loaded, or is older than 10.12.
    """
    what = "running a TensorRT engine in this process"
    try:
        import tensorrt
    except ImportError as error:
        raise missing_extra("tensorrt", "gpu", what) from error
    except OSError as error:  # its libraries
        raise RuntimeUnavailableError(f"TensorRT cannot be loaded ({error}); install it again") from error
    if not hasattr(tensorrt, "Runtime"):  # a package of type stubs leaves a folder that can be imported
        raise missing_extra("tensorrt", "gpu", what)
    if version_numbers(tensorrt.__version__)[:2] < OLDEST_TENSORRT:
        raise RuntimeUnavailableError(
            f"TensorRT {tensorrt.__version__} is too old, expected 10.12 or later; upgrade it"
        )
    return tensorrt


class LoadedEngine:
    """An engine that TensorRT has deserialised, with the objects that must outlive it."""

    def __init__(self, module: Any, plan: Path, *, host_code_allowed: bool = False) -> None:
        """Read a plan.

        Args:
            module: ``tensorrt``, or one with its API.
            plan: a serialised engine.
            host_code_allowed: let TensorRT execute the code in a version-compatible plan.

        Raises:
            DferDeployError: the file cannot be read, or TensorRT refuses it. The error includes TensorRT's messages.
        """
        try:
            content = plan.read_bytes()
        except OSError as error:
            raise RuntimeUnavailableError(
                f"{plan} cannot be read ({error.strerror}); build it with: dfer-deploy build"
            ) from error
        self.plan = plan
        self.messages = _messages(module)
        runtime: trt.Runtime | None = module.Runtime(self.messages)
        if runtime is None:
            raise self.error("TensorRT's runtime cannot be made")
        runtime.engine_host_code_allowed = host_code_allowed
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self.error(f"{plan} cannot be loaded by TensorRT {module.__version__} here")
        self._runtime = runtime
        self.engine = engine

    def error(self, what: str) -> EngineError:
        """Build an error from ``what`` went wrong and TensorRT's last messages."""
        said = "; ".join(dict.fromkeys(self.messages.texts)) or "it gave no reason"
        return EngineError(f"{what} ({said}); build the engines on this machine with: dfer-deploy build")

    def tensors(self) -> list[EngineTensor]:
        """List the engine's inputs and outputs."""
        engine = self.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            EngineTensor(
                name,
                engine.get_tensor_mode(name).name,
                engine.get_tensor_dtype(name).name,
                engine.get_tensor_shape(name)[:],
            )
            for name in names
        ]

    def shapes(self, name: str) -> ShapeRange:
        """Read the limits of an input's shape from the only optimisation profile, 0."""
        engine = self.engine
        smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
        return ShapeRange(smallest[:], largest[:])

    def close(self) -> None:
        """Release TensorRT's objects in the required order: engine, runtime, logger."""
        del self.engine, self._runtime, self.messages


def _messages(module: Any) -> Any:
    class Messages(module.ILogger):  # type: ignore[misc]
        """Keeps TensorRT's last error messages, because its API reports no reasons elsewhere."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.texts: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR):
                self.texts.append(" ".join(message.split()))

    return Messages()


@dataclass
class _Captured:
    """A CUDA graph, the execution context whose launches it holds, and the memory of the outputs."""

    graph: torch.cuda.CUDAGraph
    context: trt.IExecutionContext
    outputs: tuple[Tensor, ...]


class EngineRunner:
    """A context manager that runs one engine on the current CUDA device, on its own stream. One thread may use it.

    Memory for input, outputs and activations is allocated once, for the largest shape. Execution contexts use
    ``USER_MANAGED`` memory and share the activations, since they never run at the same time. Each captured graph has
    its own context, because changing a context from which a graph was captured is undefined behaviour.
    """

    def __init__(
        self, module: Any, plan: Path, spec: GraphSpec, *, cuda_graphs: bool = True, host_code_allowed: bool = False
    ) -> None:
        """Load a plan and allocate its memory.

        Args:
            module: ``tensorrt``, or one with its API.
            plan: a serialised engine with one input and one optimisation profile.
            spec: the graph whose inputs and outputs the engine must have.
            cuda_graphs: record the launches for a shape once and replay them.
            host_code_allowed: let TensorRT execute the code in a version-compatible plan.

        Raises:
            DferDeployError: PyTorch cannot use a GPU, or the plan is missing, refused or of another model.
        """
        require(torch.cuda.is_available(), f"{plan} needs an NVIDIA GPU that PyTorch can use, and there is none here")
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        self._loaded = LoadedEngine(module, plan, host_code_allowed=host_code_allowed)
        check_tensors(self._loaded.tensors(), spec, plan)
        (self._input,) = spec.inputs
        self._outputs = spec.outputs
        self.shapes = self._loaded.shapes(self._input.name)
        self._memory = {tensor.name: self._allocated(tensor) for tensor in (self._input, *self._outputs)}
        self._pinned = torch.empty_like(self._memory[self._input.name], device="cpu", pin_memory=True)
        engine = self._loaded.engine
        self._activations = torch.empty(max(engine.device_memory_size_v2, 1), dtype=torch.uint8, device=self.device)
        self._context = self._new_context()
        self._caller: torch.cuda.Stream | None = None
        self._cuda_graphs = cuda_graphs
        self._captured: dict[tuple[tuple[int, ...], int], _Captured] = {}

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """Copy an array through pinned memory into the engine's input memory, on the current stream.

        Read an answer before the next upload, so that the earlier upload has been completed.

        Raises:
            DferDeployError: the engine was not built for this shape, or the array has another dtype.
        """
        self.shapes.check(self._input.name, array.shape)
        require(
            array.dtype == self._input.numpy_dtype,
            f"{self._input.name} has the type {array.dtype}, expected {self._input.dtype}; convert it",
        )
        pinned = self._pinned[: array.size].view(array.shape)
        np.copyto(pinned.numpy(), array)
        tensor = self._memory[self._input.name][: array.size].view(array.shape)
        return tensor.copy_(pinned, non_blocking=True)

    def run(self, tensor: Tensor, *, stays: bool = False) -> tuple[Tensor, ...]:
        """Enqueue the engine after the current stream's work, and the current stream's further work after the engine.

        Args:
            tensor: the input on this engine's device, contiguous. It is not copied.
            stays: whether the tensor's memory stays valid as long as this runner, so that a CUDA graph may refer to it.

        Returns:
            The outputs in the contract's order: views of the engine's own memory. Read them before the next run.

        Raises:
            DferDeployError: the tensor does not fit, or TensorRT refuses to run.
        """
        self._check(tensor)
        # The calling thread's current device may be another one.
        with torch.cuda.device(self.device):
            return self._run(tensor, stays=stays)

    def _run(self, tensor: Tensor, *, stays: bool) -> tuple[Tensor, ...]:
        key = tuple(tensor.shape), tensor.data_ptr()
        current = torch.cuda.current_stream(self.device)
        # The previous caller's stream may still read its answer from this engine's memory.
        for stream in {current, self._caller or current}:
            self.stream.wait_stream(stream)
        self._caller = current
        if key in self._captured:
            with torch.cuda.stream(self.stream):
                self._captured[key].graph.replay()
            outputs = self._captured[key].outputs
        elif stays and self._cuda_graphs and len(self._captured) < MAX_GRAPHS:
            outputs = self._run_and_capture(tensor, key)
        else:
            outputs = self._bind(self._context, tensor)
            self._execute(self._context)
        current.wait_stream(self.stream)
        return outputs

    def _run_and_capture(self, tensor: Tensor, key: tuple[tuple[int, ...], int]) -> tuple[Tensor, ...]:
        context = self._new_context()
        outputs = self._bind(context, tensor)
        # The first enqueue after a change of shape updates the context's state, which a graph cannot hold.
        self._execute(context)
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        try:
            # Other threads may use CUDA during the capture, as in Triton's TensorRT backend.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._execute(context)
        except (RuntimeError, DferDeployError) as error:
            # The answer of the first enqueue is valid.
            self._cuda_graphs = False
            warn(f"{self._loaded.plan} runs without CUDA graphs, its launches cannot be recorded: {error}")
            return outputs
        finally:
            torch.cuda.set_stream(current)  # a failed capture leaves its own stream behind
        self._captured[key] = _Captured(graph, context, outputs)
        return outputs

    def _new_context(self) -> trt.IExecutionContext:
        engine = self._loaded.engine
        context = engine.create_execution_context(self._strategy)
        if context is None:
            raise self._loaded.error(f"TensorRT makes no execution context of {self._loaded.plan}")
        context.set_device_memory(self._activations.data_ptr(), self._activations.numel())
        # The profile is the default, but in older versions for an engine's first context only.
        if not context.set_optimization_profile_async(0, self.stream.cuda_stream):
            raise self._loaded.error(f"TensorRT refuses the optimisation profile of {self._loaded.plan}")
        return context

    def _bind(self, context: trt.IExecutionContext, tensor: Tensor) -> tuple[Tensor, ...]:
        shape = tuple(tensor.shape)
        if not context.set_input_shape(self._input.name, shape):
            raise self._loaded.error(f"TensorRT refuses {self._input.name} of the shape {list(shape)}")
        outputs = []
        for output in self._outputs:
            output_shape = context.get_tensor_shape(output.name)[:]
            memory = self._memory[output.name]
            if min(output_shape) < 0 or math.prod(output_shape) > memory.numel():
                raise self._loaded.error(f"TensorRT gives {output.name} the shape {list(output_shape)}")
            outputs.append(memory[: math.prod(output_shape)].view(output_shape))
        for name, data in zip((self._input.name, *(o.name for o in self._outputs)), (tensor, *outputs), strict=True):
            if not context.set_tensor_address(name, data.data_ptr()):
                raise self._loaded.error(f"TensorRT refuses the address of {name}")
        return tuple(outputs)

    def _execute(self, context: trt.IExecutionContext) -> None:
        if not context.execute_async_v3(self.stream.cuda_stream):
            raise self._loaded.error(f"TensorRT cannot run {self._loaded.plan}")

    def _check(self, tensor: Tensor) -> None:
        self.shapes.check(self._input.name, tuple(tensor.shape))
        require(
            tensor.dtype == _TORCH_DTYPES[self._input.dtype] and tensor.device == self.device,
            f"{self._input.name} is {tensor.dtype} on {tensor.device}, expected {self._input.dtype} on {self.device}",
        )
        require(
            tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0,
            f"{self._input.name} is not contiguous at a multiple of {_ALIGNMENT} bytes; give its clone()",
        )

    def _allocated(self, tensor: TensorSpec) -> Tensor:
        return torch.empty(self.shapes.room_for(tensor), dtype=_TORCH_DTYPES[tensor.dtype], device=self.device)

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stream.synchronize()
        # Release graphs before their contexts, contexts before the engine, and the memory that all of them use last.
        while self._captured:
            self._captured.popitem()[1].graph.reset()
        del self._context
        self._loaded.close()
        del self._memory, self._pinned, self._activations
