"""A Triton Python-backend model that answers live streams: one frame's features in, the answer for its window out.

It keeps the last 16 frames' features of every stream and runs the temporal head's graph, the ``model.onnx`` beside it,
with onnxruntime on the windows of all streams that have a frame at the moment. It runs in a process of the private
environment (NumPy 1.26, no dfer_deploy), so it imports nothing but NumPy, onnxruntime and Triton's own module.

Which stream a request belongs to (a number or a string), and whether it begins or ends one, are properties of the
request, not tensors: a control tensor for the correlation id would have to be of one type. Before 16 frames have come,
the window is those frames and then the newest repeated, as short clips are padded; from 16 on it is the last 16.

Triton's model configuration gives the input's name and width, the outputs' names and these parameters:

    max_frames         frames of a window
    max_streams        how many streams are remembered at the same time
    intra_op_threads   threads of one execution; 0 is one for every core
    spinning           "1": threads that wait for work burn their core for some milliseconds, "0": they sleep at once
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

Float32 = npt.NDArray[np.float32]


class RequestError(ValueError):
    """A mistake of the client's, told in one sentence."""


@dataclass(frozen=True)
class Stream:
    """What is remembered of a stream: its padded window, float32 [16, L], and how many frames are in it."""

    window: Float32
    count: int

    def followed_by(self, frame: Float32) -> Stream:
        """The stream after one more frame [L]."""
        size = len(self.window)
        window = np.empty_like(self.window)
        if self.count == size:
            window[:-1] = self.window[1:]
            window[-1] = frame
        else:
            window[: self.count] = self.window[: self.count]
            window[self.count :] = frame
        return Stream(window, min(self.count + 1, size))


@dataclass(frozen=True)
class Step:
    """A request that can be answered: its place among the requests, its stream after its frame, whether that ends."""

    index: int
    name: int | str
    stream: Stream
    is_last: bool


class TritonPythonModel:
    """The one instance of the model; Triton calls ``initialize`` once and ``execute`` with every batch of requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph. An exception here is a model that does not load, with this message in Triton's log."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        (model_input,) = config["input"]
        self._input_name: str = model_input["name"]
        self._output_names: list[str] = [output["name"] for output in config["output"]]
        self._width = int(model_input["dims"][-1])
        self._max_frames = int(parameters["max_frames"])
        self._max_streams = int(parameters["max_streams"])
        # The least recently used first. Triton lets no more than max_streams sequences into the model and forgets a
        # sequence that was idle too long without telling the model, so a state too many belongs to a forgotten one, and
        # that has been idle longer than any other. Should it ever hit a living stream, then its next frame is refused:
        # a window is right or it is not there.
        self._streams: OrderedDict[int | str, Stream] = OrderedDict()
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(
            str(graph),
            _session_options(int(parameters["intra_op_threads"]), parameters["spinning"]),
            providers=["CPUExecutionProvider"],
        )
        # The first execution allocates memory; Triton's own warm-up would be a request without a stream.
        self._run([Stream(np.zeros((self._max_frames, self._width), np.float32), 0)])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request, in order. A request that cannot be answered gets an error and changes no window.

        Args:
            requests: one input [1, 1, L] each.

        Returns:
            As many responses as requests.
        """
        responses: list[Any] = [None] * len(requests)
        waiting = list(enumerate(requests))
        while waiting:
            # The end of a stream and the start of the next one under the same name can come together.
            steps: dict[int | str, Step] = {}
            later = []
            for index, request in waiting:
                name = request.correlation_id()
                if name in steps:
                    later.append((index, request))
                    continue
                step, responses[index] = self._step_or_error(index, name, request)
                if step is not None:
                    steps[name] = step
            for index, response in self._answer(list(steps.values())):
                responses[index] = response
            waiting = later
        return responses

    def _step_or_error(self, index: int, name: int | str, request: Any) -> tuple[Step | None, Any]:
        try:
            return self._step(index, name, request), None
        except Exception as error:
            return None, _error_response(error)

    def _step(self, index: int, name: int | str, request: Any) -> Step:
        is_first = bool(request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        is_last = bool(request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        # For Triton the old stream of this name is over, and one that ends is, whatever becomes of this request.
        before = self._streams.pop(name, None) if is_first or is_last else self._streams.get(name)
        frame = self._checked_frame(request)
        if is_first:
            before = Stream(np.empty((self._max_frames, self._width), np.float32), 0)
        if before is None:
            raise RequestError(
                f"the stream {name!r} has no frames here, its first one was refused or it was forgotten; "
                "send the frames of its window again, the first one with the START flag"
            )
        return Step(index, name, before.followed_by(frame), is_last)

    def _checked_frame(self, request: Any) -> Float32:
        tensor = pb_utils.get_input_tensor_by_name(request, self._input_name)
        if tensor is None:
            raise RequestError(f"the input {self._input_name!r} is missing; send it")
        array = tensor.as_numpy()
        expected = (1, 1, self._width)
        if array.dtype != np.float32 or array.shape != expected:
            raise RequestError(
                f"{self._input_name!r} has the dtype {array.dtype} and the shape {list(array.shape)}, expected float32 "
                f"{list(expected)}: one frame of one stream"
            )
        if not np.isfinite(array).all():
            raise RequestError(f"{self._input_name!r} holds values that are not finite; send finite numbers")
        frame: Float32 = array[0, 0]
        return frame

    def _answer(self, steps: list[Step]) -> list[tuple[int, Any]]:
        """Runs the windows of different streams together; if that fails, each alone, so that one cannot harm another.

        Only what was answered is remembered.
        """
        if not steps:
            return []
        try:
            outputs = self._run([step.stream for step in steps])
            answers = [
                (step.index, self._response([output[row : row + 1] for output in outputs]))
                for row, step in enumerate(steps)
            ]
        except Exception as error:
            if len(steps) == 1:
                return [(steps[0].index, _error_response(error))]
            return [answer for step in steps for answer in self._answer([step])]
        for step in steps:
            if not step.is_last:
                self._streams[step.name] = step.stream
                self._streams.move_to_end(step.name)
        while len(self._streams) > self._max_streams:
            self._streams.popitem(last=False)
        return answers

    def _run(self, streams: list[Stream]) -> list[Float32]:
        windows = np.stack([stream.window for stream in streams])
        outputs: list[Float32] = self._session.run(self._output_names, {self._input_name: windows})
        return outputs

    def _response(self, outputs: list[Float32]) -> Any:
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
