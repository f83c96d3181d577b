"""Reading and refusal of requests in the Python-backend models. ``export`` copies this file beside each ``model.py``.

It runs where the models run: NumPy and Triton's own module are available there, but dfer_deploy is not.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import triton_python_backend_utils as pb_utils


class RequestError(ValueError):
    """A client's mistake, described in one sentence."""


def input_array(request: Any, name: str) -> npt.NDArray[Any]:
    """Read an input of a request.

    Raises:
        RequestError: the client did not send the input.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise RequestError(f"the input {name!r} is missing; send it")
    array: npt.NDArray[Any] = tensor.as_numpy()
    return array


def check_clips(name: str, array: npt.NDArray[Any], what: str, most: int) -> None:
    """Check that an input [B, T, …] holds clips that the model can take.

    Args:
        name: name of the input.
        array: content of the input.
        what: items that a clip consists of, ``frames`` or ``images``.
        most: largest allowed T.

    Raises:
        RequestError: B is 0, or T is not between 1 and ``most``.
    """
    if not 1 <= array.shape[1] <= most:
        raise RequestError(f"{name!r} has {array.shape[1]} {what} a clip, expected 1 to {most}")
    if array.shape[0] < 1:
        raise RequestError(f"{name!r} holds no clip, expected at least one")


def refusal(error: Exception) -> Any:
    """Build the response that reports to a client why its request failed.

    An error that is not the client's mistake is reported with the name of its class.
    """
    if isinstance(error, RequestError):
        return error_response(str(error), pb_utils.TritonError.INVALID_ARG)
    return error_response(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


def error_response(message: str, code: Any) -> Any:
    """Build a response with one of Triton's error codes and without tensors."""
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
