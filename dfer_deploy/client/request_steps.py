"""A client's requests as steps without input or output, which the blocking and the asynchronous client both run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dfer_deploy.answers.clip_answers import Answer, answer_from
from dfer_deploy.client.calls import Infer, ListModels, ReadConfig, Steps, bytes_array
from dfer_deploy.client.receipt_check import Receipts
from dfer_deploy.client.retry_policy import CONNECT_RETRIES, RetryPolicy, RetryState
from dfer_deploy.client.served_model import ServedModel, ServedStream, served_model, served_receipts, served_stream
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.errors import CallError, ClipError, IncompatibleServerError, ModelNotFoundError, SettingError
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.specs import MAX_IMAGE_BYTES
from dfer_deploy.triton.address import Address

MAX_HTTP_REQUEST_BYTES = 48 << 20
"""Limits the tensor in one HTTP request. By default, newer servers refuse a body over 64 MiB; gRPC allows 2 GB."""

EncodedImage = bytes | bytearray | memoryview | str | Path
"""A JPEG, PNG or WebP image: its bytes, or the path of a file."""

EncodedImages = Sequence[EncodedImage]
"""The images of one clip in the order of time."""


class ModelRequests:
    """The requests to one model of one server, as steps."""

    def __init__(self, address: Address, name: str, policy: RetryPolicy) -> None:
        self._address, self._name, self._policy = address, name, policy
        self._labels: tuple[str, ...] | None = None
        self._model: ServedModel | None = None
        self._labels_of = 0
        """The id of the encoder whose class names are known, as a stream's answers report it; 0 before the first."""
        self._stream: ServedStream | None = None
        self._receipts: dict[str, Receipts] = {}
        """The receipts that each model returns, by its name."""

    @property
    def address(self) -> Address:
        return self._address

    @property
    def policy(self) -> RetryPolicy:
        return self._policy

    @property
    def model(self) -> ServedModel:
        """The model, once ``connect`` has run."""
        if self._model is None:
            raise not_connected()
        return self._model

    @property
    def known_labels(self) -> tuple[str, ...]:
        """The class names, once ``labels`` has run."""
        if self._labels is None:
            raise not_connected()
        return self._labels

    def connect(self) -> Steps[None]:
        """Read the model's configuration, with at most ``CONNECT_RETRIES`` retries.

        Raises:
            DferDeployError: no server answers, the server does not have the model, or it is not an ensemble from frames
                to classes.
        """
        state = replace(self._policy, retries=min(CONNECT_RETRIES, self._policy.retries)).start()
        try:
            config = yield from state.response_to(ReadConfig(self._name))
        except CallError as error:
            raise (yield from self._with_known_models(state, error)) from error
        self._model = served_model(self._name, self._address, config)
        self._receipts = {self._name: served_receipts(self._name, self._address, config)}

    def labels_of(self, encoder_id: int) -> Steps[tuple[str, ...]]:
        """Read the class names for answers of the encoder ``encoder_id``; another encoder's names are read again.

        Raises:
            DferDeployError: as ``labels`` does.
        """
        if self._labels_of not in (0, encoder_id):
            self._labels = None
        self._labels_of = encoder_id
        return (yield from self.labels())

    def labels(self) -> Steps[tuple[str, ...]]:
        """Read the class names, in the order of the logits, once. The server's classification extension reports them.

        Raises:
            DferDeployError: the request fails, or the server does not have a label for every class.
        """
        if self._labels is None:
            model = self.model
            frames = np.zeros((1, 1, model.image_size, model.image_size, 3), np.uint8)
            call = Infer(model.name, {"frames": frames}, ("probabilities",), class_count=model.num_classes)
            ranking = (yield from self.responses(self._policy.start(), call))[0]
            # Every entry is "value:index:label"; a label may hold colons.
            entries = [entry.decode("utf-8", errors="replace").split(":", 2) for entry in ranking.reshape(-1).tolist()]
            names = {int(entry[1]): entry[2] for entry in entries if len(entry) == 3}
            if sorted(names) != list(range(model.num_classes)) or not all(names.values()):
                raise IncompatibleServerError(
                    f"the model at {self._address} has no label for every class; serve it with labels.txt"
                )
            self._labels = tuple(names[index] for index in range(model.num_classes))
        return self._labels

    def stream(self) -> Steps[ServedStream]:
        """Read the sizes of a stream's window, once.

        Raises:
            IncompatibleServerError: the server's bundle was exported by another version of dfer-deploy.
            DferDeployError: the request fails.
        """
        if self._stream is None:
            name, state = f"{self.model.name}_stream", self._policy.start()
            try:
                config = yield from state.response_to(ReadConfig(name))
            except CallError as error:
                raise (yield from self._with_known_models(state, error)) from error
            self._stream = served_stream(name, self._address, config)
            self._receipts[name] = served_receipts(name, self._address, config)
        return self._stream

    def encode(self, frames: Frames) -> Steps[Float32]:
        """Run the image encoder alone: frames uint8 [B, T, S, S, 3] to frame features float32 [B, T, L]."""
        (features,) = yield from self._infer(self.model.image_encoder, "frames", frames, ("frame_features",))
        answer: Float32 = self.checked(features, "frame_features", frames.shape[:2] + features.shape[2:])
        return answer

    def classify(self, frame_features: Float32) -> Steps[Prediction]:
        """Run the temporal head alone: frame features float32 [B, T, L] to logits and probabilities [B, C]."""
        return (yield from self._prediction(self.model.temporal_head, "frame_features", frame_features))

    def predict(self, frames: Frames) -> Steps[Prediction]:
        """Run the ensemble on frames uint8 [B, T, S, S, 3], without padding or sampling."""
        return (yield from self._prediction(self.model.name, "frames", frames))

    def answer(self, clip: Frames | EncodedImages) -> Steps[Answer | list[Answer]]:
        """Answer a clip, or every clip of a batch, from 16 frames each; see ``Client.predict``."""
        labels = yield from self.labels()
        if isinstance(clip, np.ndarray):
            frames = self._sixteen(clip)
            prediction = yield from self.predict(frames)
        else:
            array = bytes_array(_sixteen_images(clip))
            prediction = yield from self._prediction(f"{self.model.name}_encoded", "images", array)
        answers = [
            answer_from(labels, *values) for values in zip(prediction.logits, prediction.probabilities, strict=True)
        ]
        return answers if isinstance(clip, np.ndarray) and clip.ndim == 5 else answers[0]

    def checked(self, array: Any, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> Any:
        """Check the shape and dtype of ``array``, and return it.

        Raises:
            DferDeployError: the shape or the dtype differs.
        """
        if array.shape != shape or array.dtype != dtype:
            raise IncompatibleServerError(
                f"{self._address} answered with {name} of the shape {list(array.shape)} and the dtype {array.dtype}, "
                f"expected {list(shape)} of {np.dtype(dtype)}; serve a bundle of this version of dfer-deploy"
            )
        return array

    def _prediction(self, model: str, name: str, array: npt.NDArray[Any]) -> Steps[Prediction]:
        logits, probabilities = yield from self._infer(model, name, array, ("logits", "probabilities"))
        shape = (array.shape[0], self.model.num_classes)
        return Prediction(self.checked(logits, "logits", shape), self.checked(probabilities, "probabilities", shape))

    def _infer(self, model: str, name: str, array: npt.NDArray[Any], outputs: tuple[str, ...]) -> Steps[list[Any]]:
        """One array for each of ``outputs``. A batch that is larger than the server allows is split."""
        expected = {"frames": "uint8", "frame_features": "float32", "images": "object"}[name]
        if not isinstance(array, np.ndarray):
            raise ClipError(f"{name} is a {type(array).__name__}, expected a NumPy array")
        if array.dtype.name not in ("uint8", "float32", expected) or array.ndim < 2:
            raise ClipError(
                f"{name} has the dtype {array.dtype} and the shape {list(array.shape)}; "
                "expected uint8 frames [B, T, H, W, 3] or float32 features [B, T, L]"
            )
        if array.shape[0] == 0:
            raise ClipError(f"{name} holds no clip (shape {list(array.shape)}); give at least one")
        size = self.model.max_batch_size
        if self._address.scheme == "http":
            size = max(1, min(size, MAX_HTTP_REQUEST_BYTES // max(1, array[0].nbytes)))
        state = self._policy.start()
        parts = []
        for index in range(math.ceil(array.shape[0] / size)):
            part = np.ascontiguousarray(array[index * size : (index + 1) * size])
            parts.append((yield from self.responses(state, Infer(model, {name: part}, outputs))))
        return [np.concatenate(answers) for answers in zip(*parts, strict=True)]

    def responses(self, state: RetryState, call: Infer) -> Steps[list[Any]]:
        """Run one inference with retries, and return its arrays.

        Raises:
            DferDeployError: the request fails, or an output is missing.
        """
        try:
            if not call.class_count:
                call = replace(call, receipts=(yield from self._receipts_of(state, call.model)))
            return self._complete(call, (yield from state.response_to(call)))
        except CallError as error:
            raise (yield from self._with_known_models(state, error)) from error

    def _receipts_of(self, state: RetryState, model: str) -> Steps[Receipts]:
        """The receipts that a model returns, which its configuration lists. It is read once."""
        if model not in self._receipts:
            config = yield from state.response_to(ReadConfig(model))
            self._receipts[model] = served_receipts(model, self._address, config)
        return self._receipts[model]

    def _complete(self, call: Infer, responses: list[Any]) -> list[Any]:
        for output, answer in zip(call.outputs, responses, strict=True):
            if answer is None:
                raise IncompatibleServerError(
                    f"the model {call.model!r} at {self._address} did not answer with {output}"
                )
        return responses

    def _with_known_models(self, state: RetryState, error: CallError) -> Steps[CallError]:
        """The error to raise. For a model that the server does not have, it names those that the server lists."""
        if not isinstance(error, ModelNotFoundError):
            return error
        if self._model is not None:  # the ensemble is older than those for encoded images and streams
            return ModelNotFoundError(f"{error}; serve a bundle of this version of dfer-deploy")
        try:
            known = yield from state.send(ListModels())
        except CallError:
            known = []
        hint = f"it has {', '.join(known)}" if known else "give the name that the bundle was exported with"
        return ModelNotFoundError(f"{error}; {hint}")

    def _sixteen(self, clip: Frames) -> Frames:
        """uint8 [B, 16, S, S, 3]. Short clips repeat their last frame; long ones are sampled as at test time."""
        size = self.model.image_size
        if clip.dtype != np.uint8 or clip.ndim not in (4, 5) or clip.shape[-3:] != (size, size, 3):
            raise ClipError(
                f"the clip has the shape {list(clip.shape)} and the dtype {clip.dtype}, expected uint8 "
                f"[T, {size}, {size}, 3], RGB in [0, 255], or a batch of such clips"
            )
        frames = clip if clip.ndim == 5 else clip[np.newaxis]
        return frames[:, sample_indices(frames.shape[1])]


class ConnectedModel:
    """The properties of a model that a connected client knows."""

    _requests: ModelRequests

    @property
    def image_size(self) -> int:
        """S, height and width in pixels of the frames that the model takes."""
        return self._requests.model.image_size

    @property
    def num_classes(self) -> int:
        return self._requests.model.num_classes

    @property
    def max_batch_size(self) -> int:
        """The largest number of clips in one request. Larger batches are split."""
        return self._requests.model.max_batch_size

    @property
    def frame_interval_s(self) -> float | None:
        """Seconds between the frames of a training clip; None if the server does not report it."""
        return self._requests.model.frame_interval_s

    @property
    def graphs_sha256(self) -> tuple[str, str] | None:
        """SHA-256 of the encoder's and the head's ONNX files; None if the server does not report them."""
        return self._requests.model.graphs_sha256


def not_connected() -> SettingError:
    """Build the error of an asynchronous client that has not connected yet, or that is closed."""
    return SettingError("the client is not connected; use it as: async with AsyncClient(…) as client")


def _sixteen_images(images: EncodedImages) -> list[bytes]:
    if isinstance(images, str | bytes | Path):
        raise ClipError("the clip is a single image; expected a list of images, one for each frame")
    if not isinstance(images, Sequence):
        raise ClipError(f"the clip is a {type(images).__name__}, expected an array or a list of encoded images")
    return [image_bytes(images[index]) for index in sample_indices(len(images)).tolist()]


def image_bytes(image: EncodedImage) -> bytes:
    """Read an encoded image: its bytes, or the content of the file at its path.

    Raises:
        DferDeployError: the file cannot be read, the image is larger than ``MAX_IMAGE_BYTES``, or its type is another.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        name, content = "the image", bytes(image)
    elif isinstance(image, str | Path):
        name = repr(str(image))
        try:
            with Path(image).open("rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, ValueError) as error:  # a path with a null byte raises ValueError
            reason = getattr(error, "strerror", None) or error
            raise ClipError(f"the image {name} cannot be read ({reason}); check the path") from error
    else:
        raise ClipError(
            f"the image is of the type {type(image).__name__}, expected the bytes or the path of a JPEG, PNG or WebP "
            "file; frames are given as one array, numpy.stack(frames)"
        )
    if len(content) > MAX_IMAGE_BYTES:
        raise ClipError(f"{name} is larger than {MAX_IMAGE_BYTES >> 20} MiB; make it smaller")
    return content
