"""A Triton Python-backend model that runs the ``model.onnx`` beside it with onnxruntime.

It serves the image encoder and the temporal head of the target ``embedded``. It runs in a process of the private
environment (NumPy 1.26, no dfer_deploy), so it imports nothing but NumPy, onnxruntime and Triton's own module.

Everything about the tensors comes from Triton's model configuration: the input's name, dtype and dims ([T, …] after
the batch, T dynamic), the outputs' names, and these parameters:

    max_frames         the largest T that the model knows positions for
    intra_op_threads   threads of one execution; 0 is one for every core
    clips_per_run      how many clips onnxruntime is given at once, or as many frames in shorter ones; 0 is all of the
                       batch
    spinning           "1": threads that wait for work burn their core for some milliseconds, "0": they sleep at once
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]

_NUMPY_DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


class RequestError(ValueError):
    """A mistake of the client's, told in one sentence."""


class TritonPythonModel:
    """One instance of the model; Triton calls ``initialize`` once and ``execute`` with every batch of requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph. An exception here is a model that does not load, with this message in Triton's log."""
        config = json.loads(args["model_config"])
        (model_input,) = config["input"]
        self._input_name: str = model_input["name"]
        self._dtype = np.dtype(_NUMPY_DTYPES[model_input["data_type"]])
        self._frame_shape = tuple(int(size) for size in model_input["dims"][1:])
        self._output_names: list[str] = [output["name"] for output in config["output"]]
        self._max_frames = int(config["parameters"]["max_frames"]["string_value"])
        self._max_batch_size = int(config["max_batch_size"])
        threads = int(config["parameters"]["intra_op_threads"]["string_value"])
        spinning: str = config["parameters"]["spinning"]["string_value"]
        self._clips_per_run = int(config["parameters"]["clips_per_run"]["string_value"]) or self._max_batch_size
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(
            str(graph), _session_options(threads, spinning), providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request, in order. A request that cannot be answered gets an error of its own.

        Args:
            requests: one input [b, T, …] each; T may differ between them.

        Returns:
            As many responses as requests.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[tuple[int, Array]]] = {}
        for index, request in enumerate(requests):
            array, responses[index] = self._input_or_error(request)
            if array is not None:
                groups.setdefault(array.shape[1:], []).append((index, array))
        for group in groups.values():
            for index, response in self._answer(group):
                responses[index] = response
        return responses

    def _input_or_error(self, request: Any) -> tuple[Array | None, Any]:
        try:
            return self._checked_input(request), None
        except Exception as error:
            return None, _error_response(error)

    def _checked_input(self, request: Any) -> Array:
        tensor = pb_utils.get_input_tensor_by_name(request, self._input_name)
        if tensor is None:
            raise RequestError(f"the input {self._input_name!r} is missing; send it")
        array: Array = tensor.as_numpy()
        expected = f"[B, T, {', '.join(map(str, self._frame_shape))}] of {self._dtype}"
        if array.dtype != self._dtype:
            raise RequestError(f"{self._input_name!r} has the dtype {array.dtype}, expected {expected}")
        if array.ndim != 2 + len(self._frame_shape) or array.shape[2:] != self._frame_shape:
            raise RequestError(f"{self._input_name!r} has the shape {list(array.shape)}, expected {expected}")
        if not 1 <= array.shape[1] <= self._max_frames:
            raise RequestError(
                f"{self._input_name!r} has {array.shape[1]} frames a clip, expected 1 to {self._max_frames}"
            )
        if array.shape[0] < 1:
            raise RequestError(f"{self._input_name!r} holds no clip, expected at least one")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RequestError(f"{self._input_name!r} holds values that are not finite; send finite numbers")
        return array

    def _answer(self, group: list[tuple[int, Array]]) -> list[tuple[int, Any]]:
        """Runs requests of equal shape together; if that fails, each one alone, so that one cannot harm another."""
        arrays = [array for _, array in group]
        try:
            outputs = self._run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
            ends = np.cumsum([len(array) for array in arrays])[:-1]
            parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
            return [(index, self._response(part)) for (index, _), part in zip(group, parts, strict=True)]
        except Exception as error:
            if len(group) == 1:
                return [(group[0][0], _error_response(error))]
            return [answer for member in group for answer in self._answer([member])]

    def _run(self, batch: Array) -> list[Array]:
        # The ensemble cannot send more than max_batch_size in one request, but several requests can add up to more
        # only if Triton's batcher were misconfigured: fail in words rather than by memory.
        if len(batch) > self._max_batch_size:
            raise RequestError(f"{len(batch)} clips in one execution, expected at most {self._max_batch_size}")
        # Live streams send single frames, of which several together are faster than one after the other.
        size = max(1, self._clips_per_run * self._max_frames // batch.shape[1])
        runs: list[list[Array]] = [
            self._session.run(self._output_names, {self._input_name: batch[start : start + size]})
            for start in range(0, len(batch), size)
        ]
        return runs[0] if len(runs) == 1 else [np.concatenate(parts) for parts in zip(*runs, strict=True)]

    def _response(self, outputs: tuple[Array, ...]) -> Any:
        # Slices of a batch are contiguous; Triton copies the bytes into shared memory.
        tensors = [pb_utils.Tensor(name, output) for name, output in zip(self._output_names, outputs, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _session_options(threads: int, spinning: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    return options


def _error_response(error: Exception) -> Any:
    # Anything but a mistake of the client's is named with its class, for whoever reads it knows onnxruntime's.
    if isinstance(error, RequestError):
        failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    else:
        failure = pb_utils.TritonError(f"{type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(output_tensors=[], error=failure)
