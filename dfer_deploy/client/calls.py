"""A client's calls as data, which a blocking and an asynchronous connection can both perform.

The generators of ``request_steps.py`` describe each request once. They yield the calls to send and the backoffs to wait
for, and receive the responses; they do no input or output. ``connection.py`` performs the steps. (httpx uses the same
design for authentication: ``sync_auth_flow`` and ``async_auth_flow``.)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dfer_deploy.client.receipt_check import Receipts, check_receipts
from dfer_deploy.triton.address import Scheme

T = TypeVar("T")

GRPC_LAG_S = 10.0
"""Seconds from the moment when a client stops waiting for an inference until gRPC ends it on the server. Servers before
2.53 may crash when gRPC ends an inference that they are about to answer (triton-inference-server/server#7840)."""

_TRITON_TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "object": "BYTES"}


class Call(Protocol):
    """One request to the server."""

    @property
    def model(self) -> str:
        """The name of the model that the request concerns, for messages."""
        ...

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        """Build the call to ``library``'s client: the name of its method, and the keyword arguments."""
        ...

    def response(self, raw: Any) -> Any:
        """Convert what the method returned to a form that is the same for gRPC and HTTP."""
        ...


@dataclass(frozen=True)
class Send:
    """Send the call now, and wait at most ``timeout_s`` for the response.

    Attributes:
        call: the call to send.
        timeout_s: seconds that are left of the request's deadline.
        deadline_s: the deadline of the whole request, in seconds, for messages.
    """

    call: Call
    timeout_s: float
    deadline_s: float


@dataclass(frozen=True)
class Backoff:
    """Wait before the next step."""

    seconds: float


Steps = Generator[Send | Backoff, Any, T]


@dataclass(frozen=True)
class Infer:
    """An inference.

    Attributes:
        model: name of the Triton model.
        inputs: arrays [B, …] by input name: uint8, int32, float32, or object (bytes).
        outputs: names of the requested outputs.
        class_count: number of classes that the classification extension ranks; 0 requests plain numbers.
        receipts: receipts to request beside the outputs and to check; see ``receipt_check.py``.
    """

    model: str
    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: tuple[str, ...]
    class_count: int = 0
    receipts: Receipts = field(default_factory=dict)

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        tensors = []
        for name, array in self.inputs.items():
            tensor = library.InferInput(name, list(array.shape), _TRITON_TYPES[array.dtype.name])
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        arguments = {
            "model_name": self.model,
            "inputs": tensors,
            "outputs": [
                *(library.InferRequestedOutput(name, class_count=self.class_count) for name in self.outputs),
                *(library.InferRequestedOutput(name) for name in self.receipts),
            ],
        }
        return "infer", arguments | _limit(scheme, timeout_s + GRPC_LAG_S)

    def response(self, raw: Any) -> list[Any]:
        """Extract one array for each output, or None for an output that the server did not send.

        Raises:
            MixedAnswerError: the receipts show that the answer was made from another request.
        """
        answers = [raw.as_numpy(output) for output in self.outputs]
        if self.receipts:
            complete = {name: answer for name, answer in zip(self.outputs, answers, strict=True) if answer is not None}
            received = {name: raw.as_numpy(name) for name in self.receipts}
            check_receipts(self.model, self.receipts, {**self.inputs, **complete}, received)
        return answers


@dataclass(frozen=True)
class ReadConfig:
    """A request for a model's configuration, as plain JSON data."""

    model: str

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        json_form = {"as_json": True} if scheme == "grpc" else {}
        return "get_model_config", {"model_name": self.model, **json_form, **_limit(scheme, timeout_s)}

    def response(self, raw: Any) -> Any:
        return raw.get("config", raw) if isinstance(raw, Mapping) else raw


@dataclass(frozen=True)
class ListModels:
    """A request for the names of the models in the server's repository."""

    model: str = ""

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        return "get_model_repository_index", _limit(scheme, timeout_s)

    def response(self, raw: Any) -> list[str]:
        entries = raw if isinstance(raw, list) else [{"name": model.name} for model in raw.models]
        return sorted({str(entry["name"]) for entry in entries})


def _limit(scheme: Scheme, timeout_s: float) -> dict[str, float]:
    """gRPC sends the timeout with the request. Over HTTP the connection applies it."""
    return {"client_timeout": timeout_s} if scheme == "grpc" else {}


def bytes_array(items: list[bytes]) -> npt.NDArray[np.object_]:
    """Pack T byte strings into an array of Triton's type BYTES, object [1, T]."""
    array = np.empty((1, len(items)), np.object_)
    array[0, :] = items
    return array
