"""The calls of a client as data, so that a blocking and an asynchronous client perform the same ones.

What a client does is written once, as generators (``request_steps.py``) that yield calls to send and backoffs to wait
for, and get the responses sent back. Neither input nor output happens there; ``connection.py`` performs them. (httpx
does the same for authentication, ``sync_auth_flow`` and ``async_auth_flow``.)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dfer_deploy.triton.address import Scheme

T = TypeVar("T")

_TRITON_TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "object": "BYTES"}


class Call(Protocol):
    """One request to the server."""

    @property
    def model(self) -> str:
        """The model that it is about, for messages."""
        ...

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        """Return the method of ``library``'s client to call, and its keyword arguments."""
        ...

    def response(self, raw: Any) -> Any:
        """Return what the method returned, in a form that does not depend on the library."""
        ...


@dataclass(frozen=True)
class Send:
    """Send the call now, and wait ``timeout_s`` for the response: what is left of the request's ``deadline_s``."""

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
        model: the Triton model.
        inputs: by name, [B, …]: uint8, int32, float32, or object holding bytes.
        outputs: the outputs to answer with.
        class_count: how many classes the classification extension ranks; 0 for plain numbers.
    """

    model: str
    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: tuple[str, ...]
    class_count: int = 0

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        tensors = []
        for name, array in self.inputs.items():
            tensor = library.InferInput(name, list(array.shape), _TRITON_TYPES[array.dtype.name])
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        arguments = {
            "model_name": self.model,
            "inputs": tensors,
            "outputs": [library.InferRequestedOutput(name, class_count=self.class_count) for name in self.outputs],
        }
        return "infer", arguments | _limit(scheme, timeout_s)

    def response(self, raw: Any) -> list[Any]:
        """Return one array for each output, None where the server gave none."""
        return [raw.as_numpy(output) for output in self.outputs]


@dataclass(frozen=True)
class ReadConfig:
    """A model's configuration, as JSON knows it."""

    model: str

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        json_form = {"as_json": True} if scheme == "grpc" else {}
        return "get_model_config", {"model_name": self.model, **json_form, **_limit(scheme, timeout_s)}

    def response(self, raw: Any) -> Any:
        return raw.get("config", raw) if isinstance(raw, Mapping) else raw


@dataclass(frozen=True)
class ListModels:
    """The names of the models that the server knows."""

    model: str = ""

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        return "get_model_repository_index", _limit(scheme, timeout_s)

    def response(self, raw: Any) -> list[str]:
        entries = raw if isinstance(raw, list) else [{"name": model.name} for model in raw.models]
        return sorted({str(entry["name"]) for entry in entries})


def _limit(scheme: Scheme, timeout_s: float) -> dict[str, float]:
    """gRPC sends the deadline with the request; over HTTP the connection has it."""
    return {"client_timeout": timeout_s} if scheme == "grpc" else {}


def bytes_array(items: list[bytes]) -> npt.NDArray[np.object_]:
    """Return Triton's BYTES, object [1, T]."""
    array = np.empty((1, len(items)), np.object_)
    array[0, :] = items
    return array
