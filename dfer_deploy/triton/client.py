"""Asks a served model over gRPC or HTTP, on this machine or another."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
from tritonclient.utils import InferenceServerException

from dfer_deploy.errors import DferDeployError
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.specs import Contract, require

MAX_HTTP_REQUEST_BYTES = 48 << 20
"""Newer servers refuse an HTTP body over 64 MiB unless told otherwise; gRPC messages may have 2 GB."""

Scheme = Literal["grpc", "http"]

_TRITON_TYPES = {"uint8": "UINT8", "float32": "FP32"}


class Address(NamedTuple):
    """A server's address: ``scheme`` and ``host:port``."""

    scheme: Scheme
    netloc: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


class TritonPredictor:
    """A :class:`~dfer_deploy.runtimes.predictor.Predictor` that asks a server.

    What it must know of the model (image size, classes, names of the steps, maximal batch) it reads from the server's
    configuration of the ensemble. Not for use by several threads at the same time.
    """

    def __init__(self, url: str, model: Contract | str = "dfer", *, timeout_s: float = 120.0) -> None:
        """Connects and reads the configuration.

        Args:
            url: ``grpc://host:port``, ``http://host:port`` or ``host:port`` (gRPC).
            model: the ensemble's name, or the contract that the server has to fulfil.
            timeout_s: for every single request.

        Raises:
            DferDeployError: no server answers there, it has no such model, or the model breaks the contract.
        """
        self._address = parse_url(url)
        require(0 < timeout_s <= 86_400, f"the timeout is {timeout_s} s, expected more than 0 and at most 86400")
        self._timeout_s = timeout_s
        self._answered = False
        if self._address.scheme == "grpc":
            from tritonclient import grpc as library

            self._client: Any = library.InferenceServerClient(
                self._address.netloc, channel_args=channel_options(self._address.netloc)
            )
        else:
            from tritonclient import http as library

            self._client = library.InferenceServerClient(
                self._address.netloc, connection_timeout=timeout_s, network_timeout=timeout_s
            )
        self._library: Any = library
        try:
            name = model if isinstance(model, str) else model.ensemble.name
            self._ensemble = self._config(name)
            steps = self._ensemble.get("ensemble_scheduling", {}).get("step", [])
            if len(steps) != 2:
                raise DferDeployError(f"the model {name!r} at {self._address} is no ensemble; give the ensemble's name")
            self._image_encoder, self._temporal_head = (str(step["model_name"]) for step in steps)
            (frames,) = self._ensemble["input"]
            self._frame_shape = tuple(int(size) for size in frames["dims"][1:])
            classes = {int(output["dims"][-1]) for output in self._ensemble["output"]}
            if len(self._frame_shape) != 3 or len(classes) != 1:
                raise DferDeployError(
                    f"the model {name!r} at {self._address} is no video classifier; give the name of one"
                )
            (self._num_classes,) = classes
            if not isinstance(model, str):
                self._check_contract(model)
        except BaseException:
            self._client.close()
            raise

    @property
    def name(self) -> str:
        return f"triton {self._address.scheme}"

    @property
    def image_size(self) -> int:
        """Height and width of the frames that the model takes."""
        return self._frame_shape[0]

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def max_batch_size(self) -> int:
        """The largest number of clips that the server takes in one request; larger batches are split."""
        return max(1, int(self._ensemble["max_batch_size"]))

    def encode(self, frames: Frames) -> Float32:
        """The image encoder alone: frames uint8 [B, T, H, W, 3] to frame features float32 [B, T, L]."""
        (features,) = self._infer(self._image_encoder, "frames", frames, ("frame_features",))
        return self._checked(features, "frame_features", frames.shape[:2] + features.shape[2:])

    def classify(self, frame_features: Float32) -> Prediction:
        """The temporal head alone: frame features float32 [B, T, L] to a prediction."""
        return self._prediction(self._temporal_head, "frame_features", frame_features)

    def predict(self, frames: Frames) -> Prediction:
        """The ensemble: frames uint8 [B, T, H, W, 3], RGB in [0, 255], 1 ≤ T ≤ 16, to a prediction."""
        return self._prediction(self._ensemble["name"], "frames", frames)

    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the logits, as the server's classification extension tells them.

        Raises:
            DferDeployError: the server knows no label for a class.
        """
        frames = np.zeros((1, 1, *self._frame_shape), np.uint8)
        (ranking,) = self._infer(self._ensemble["name"], "frames", frames, ("probabilities",), self._num_classes)
        # Every entry is "value:index:label"; a label may hold colons.
        entries = [entry.decode("utf-8", errors="replace").split(":", 2) for entry in ranking.reshape(-1).tolist()]
        names = {int(entry[1]): entry[2] for entry in entries if len(entry) == 3}
        if sorted(names) != list(range(self._num_classes)) or not all(names.values()):
            raise DferDeployError(
                f"the model at {self._address} has no label for every class; serve it with labels.txt"
            )
        return tuple(names[index] for index in range(self._num_classes))

    def __enter__(self) -> TritonPredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def _prediction(self, model: str, name: str, array: np.ndarray[Any, Any]) -> Prediction:
        logits, probabilities = self._infer(model, name, array, ("logits", "probabilities"))
        shape = (array.shape[0], self._num_classes)
        return Prediction(self._checked(logits, "logits", shape), self._checked(probabilities, "probabilities", shape))

    def _infer(
        self, model: str, name: str, array: np.ndarray[Any, Any], outputs: tuple[str, ...], class_count: int = 0
    ) -> list[Any]:
        """One array for each of ``outputs``; the batch is split where it is larger than the server allows."""
        if array.dtype.name not in _TRITON_TYPES or array.ndim < 2:
            raise DferDeployError(
                f"{name} has the dtype {array.dtype} and the shape {list(array.shape)}; "
                "expected uint8 frames [B, T, H, W, 3] or float32 features [B, T, L]"
            )
        if array.shape[0] == 0:
            raise DferDeployError(f"{name} holds no clip (shape {list(array.shape)}); give at least one")
        size = self.max_batch_size
        if self._address.scheme == "http":
            size = max(1, min(size, MAX_HTTP_REQUEST_BYTES // max(1, array[0].nbytes)))
        parts = []
        for index in range(math.ceil(array.shape[0] / size)):
            part = np.ascontiguousarray(array[index * size : (index + 1) * size])
            tensor = self._library.InferInput(name, list(part.shape), _TRITON_TYPES[part.dtype.name])
            tensor.set_data_from_numpy(part)
            wanted = [self._library.InferRequestedOutput(output, class_count=class_count) for output in outputs]
            with self._errors(model):
                # The HTTP client's timeout is the connection's.
                limit = {"client_timeout": self._timeout_s} if self._address.scheme == "grpc" else {}
                result = self._client.infer(model, [tensor], outputs=wanted, **limit)
                parts.append([result.as_numpy(output) for output in outputs])
        for output, answer in zip(outputs, parts[0], strict=True):
            if answer is None:
                raise DferDeployError(f"the model {model!r} at {self._address} did not answer with {output}")
        return [np.concatenate(answers) for answers in zip(*parts, strict=True)]

    def _checked(self, array: Any, name: str, shape: tuple[int, ...]) -> Float32:
        if array.shape != shape or array.dtype != np.float32:
            raise DferDeployError(
                f"{self._address} answered with {name} of the shape {list(array.shape)} and the dtype {array.dtype}, "
                f"expected {list(shape)} of float32; serve a bundle of this version of dfer-deploy"
            )
        answer: Float32 = array
        return answer

    def _config(self, model: str) -> dict[str, Any]:
        with self._errors(model):
            if self._address.scheme == "grpc":
                answer = self._client.get_model_config(model, as_json=True, client_timeout=self._timeout_s)
                config: dict[str, Any] = answer["config"]
            else:
                config = self._client.get_model_config(model)
        return config

    def _check_contract(self, contract: Contract) -> None:
        size, classes = contract.ensemble.inputs[0].shape[2], contract.ensemble.outputs[0].shape[1]
        if (self.image_size, self.num_classes) != (size, classes):
            raise DferDeployError(
                f"the model {self._ensemble['name']!r} at {self._address} takes images of {self.image_size} pixels and "
                f"knows {self.num_classes} classes, expected {size} pixels and {classes} classes; is it another model?"
            )

    @contextlib.contextmanager
    def _errors(self, model: str) -> Iterator[None]:
        """Turns what the client library raises into one sentence."""
        try:
            yield
        except InferenceServerException as error:
            raise self._refusal(model, str(error.status() or ""), str(error.message() or "")) from error
        except TimeoutError as error:
            raise self._too_slow() from error
        except OSError as error:
            raise self._unreachable(error.strerror or str(error)) from error
        except Exception as error:
            # geventhttpclient raises classes of its own when the server closes the connection.
            # rapidjson's where what answers is no Triton.
            if not type(error).__module__.startswith(("geventhttpclient", "_parser", "http.client", "rapidjson")):
                raise
            raise self._unreachable(str(error)) from error
        else:
            self._answered = True

    def _refusal(self, model: str, status: str, message: str) -> DferDeployError:
        text = message.splitlines()[0].removeprefix("[request id: <id_unknown>] ") if message else status
        # Triton explains its batch dimension at length where a shape is wrong.
        text = text.split(" NOTE: ")[0].rstrip(".")
        if "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message or "timed out" in message:
            return self._too_slow()
        if "unknown model" in text or "NOT_FOUND" in status or status == "404":
            known = self._known_models()
            return DferDeployError(
                f"the server at {self._address} has no model {model!r}; "
                + (f"it has {', '.join(known)}" if known else "give the name that the bundle was exported with")
            )
        if "maximum queue size" in message:
            return DferDeployError(f"the server at {self._address} is full ({text}); send fewer requests at a time")
        if "UNAVAILABLE" in status and "restricted" not in message:
            return self._unreachable(text)
        return DferDeployError(f"the server at {self._address} refused the request to {model!r}: {text}")

    def _unreachable(self, detail: str) -> DferDeployError:
        if self._answered:
            return DferDeployError(
                f"the server at {self._address} went away during a request ({detail}); "
                "look into its log and start it again"
            )
        other = "http://" if self._address.scheme == "grpc" else "grpc://"
        return DferDeployError(
            f"no Triton server answers at {self._address} ({detail}); start one with: dfer-deploy serve BUNDLE, "
            f"or check the port (ports of the other protocol need {other})"
        )

    def _too_slow(self) -> DferDeployError:
        return DferDeployError(
            f"the server at {self._address} did not answer within {self._timeout_s:g} s; "
            "send fewer clips at a time or wait longer"
        )

    def _known_models(self) -> list[str]:
        """The models of the server, or nothing where it does not tell."""
        with contextlib.suppress(InferenceServerException, OSError):
            index = self._client.get_model_repository_index()
            entries = index if isinstance(index, list) else [{"name": model.name} for model in index.models]
            return sorted({str(entry["name"]) for entry in entries})
        return []


def channel_options(netloc: str) -> list[tuple[str, int]]:
    """gRPC channel options: messages up to 2 GB, and no proxy between this machine and itself."""
    largest = 2**31 - 1
    options = [("grpc.max_send_message_length", largest), ("grpc.max_receive_message_length", largest)]
    if netloc.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]"):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def parse_url(url: str) -> Address:
    """Reads ``grpc://host:port``, ``http://host:port`` or ``host:port``, which is gRPC.

    Raises:
        DferDeployError: it is none of these.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "grpc", url
    host, colon, port = rest.rstrip("/").rpartition(":")
    valid = bool(host) and bool(colon) and "/" not in host and port.isascii() and port.isdigit()
    if scheme not in ("grpc", "http") or not valid or not 0 < int(port) < 65536:
        raise DferDeployError(
            f"the address {url!r} is not understood; expected grpc://HOST:PORT (port 8001 by default) "
            "or http://HOST:PORT (port 8000 by default)"
        )
    return Address("grpc" if scheme == "grpc" else "http", f"{host}:{port}")
