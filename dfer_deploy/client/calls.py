"""The calls of a client as data, so that a blocking and an asynchronous client perform the same ones.

What a client does is written once, as generators (``flows.py``) that yield attempts of calls and pauses, and get the
replies sent back. Neither input nor output happens there; ``connection.py`` performs them. (httpx does the same for
authentication, ``sync_auth_flow`` and ``async_auth_flow``.)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dfer_deploy.client.address import Scheme

T = TypeVar("T")

_TO_SAY_SO_S = 1.0

_TRITON_TYPES = {"uint8": "UINT8", "float32": "FP32", "object": "BYTES"}


class Call(Protocol):
    """One request to the server."""

    @property
    def model(self) -> str:
        """The model that it is about, for messages."""
        ...

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        """The method of ``library``'s client to call, and its keyword arguments."""
        ...

    def reply(self, raw: Any) -> Any:
        """What the method returned, in a form that does not depend on the library."""
        ...


@dataclass(frozen=True)
class Attempt:
    """Perform the call now, within ``timeout_s``: what is left of its question's ``deadline_s``."""

    call: Call
    timeout_s: float
    deadline_s: float


@dataclass(frozen=True)
class Pause:
    """Wait before the next step."""

    seconds: float


Flow = Generator[Attempt | Pause, Any, T]


@dataclass(frozen=True)
class Position:
    """A request's place in its sequence."""

    correlation_id: int
    start: bool = False
    end: bool = False


@dataclass(frozen=True)
class Infer:
    """An inference of one input array: uint8, float32, or object holding bytes.

    Attributes:
        model: the Triton model.
        name: the input's name.
        array: its values, [B, …].
        outputs: the outputs to answer with.
        class_count: how many classes the classification extension ranks; 0 for plain numbers.
        position: of a request that belongs to a sequence.
        place_timeout_s: how long the server lets it wait for a place among the streams; None for as long as there is.
    """

    model: str
    name: str
    array: npt.NDArray[Any]
    outputs: tuple[str, ...]
    class_count: int = 0
    position: Position | None = None
    place_timeout_s: float | None = None

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        tensor = library.InferInput(self.name, list(self.array.shape), _TRITON_TYPES[self.array.dtype.name])
        tensor.set_data_from_numpy(self.array)
        waiting_s = timeout_s - min(_TO_SAY_SO_S, timeout_s / 10)
        if self.place_timeout_s is not None:
            waiting_s = min(waiting_s, self.place_timeout_s)
        arguments: dict[str, Any] = {
            "model_name": self.model,
            "inputs": [tensor],
            "outputs": [library.InferRequestedOutput(name, class_count=self.class_count) for name in self.outputs],
            # For a place among the streams, and where a model's queue policy honours it. The server gives up before
            # the client does, so that it can say what was missing.
            "timeout": max(1, int(1e6 * waiting_s)),
        }
        if self.position is not None:
            arguments |= {
                "sequence_id": self.position.correlation_id,
                "sequence_start": self.position.start,
                "sequence_end": self.position.end,
            }
        return "infer", arguments | _limit(scheme, timeout_s)

    def reply(self, raw: Any) -> list[Any]:
        """One array for each output, None where the server gave none."""
        return [raw.as_numpy(output) for output in self.outputs]


@dataclass(frozen=True)
class ReadConfig:
    """A model's configuration, as JSON knows it."""

    model: str

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        json_form = {"as_json": True} if scheme == "grpc" else {}
        return "get_model_config", {"model_name": self.model, **json_form, **_limit(scheme, timeout_s)}

    def reply(self, raw: Any) -> Any:
        return raw.get("config", raw) if isinstance(raw, Mapping) else raw


@dataclass(frozen=True)
class ListModels:
    """The names of the models that the server knows."""

    model: str = ""

    def request(self, library: Any, scheme: Scheme, timeout_s: float) -> tuple[str, dict[str, Any]]:
        return "get_model_repository_index", _limit(scheme, timeout_s)

    def reply(self, raw: Any) -> list[str]:
        entries = raw if isinstance(raw, list) else [{"name": model.name} for model in raw.models]
        return sorted({str(entry["name"]) for entry in entries})


def _limit(scheme: Scheme, timeout_s: float) -> dict[str, float]:
    """gRPC sends the deadline with the request; over HTTP the connection has it."""
    return {"client_timeout": timeout_s} if scheme == "grpc" else {}


def bytes_array(items: list[bytes]) -> npt.NDArray[np.object_]:
    """Triton's BYTES, object [1, T]."""
    array = np.empty((1, len(items)), np.object_)
    array[0, :] = items
    return array
