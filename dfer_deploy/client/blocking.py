"""The blocking client."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np

from dfer_deploy.answers.clip_answers import Answer, StreamAnswer
from dfer_deploy.answers.video_windows import AnswersVideos
from dfer_deploy.client.calls import Steps
from dfer_deploy.client.connection import Connection
from dfer_deploy.client.request_steps import ConnectedModel, EncodedImage, EncodedImages, ModelRequests
from dfer_deploy.client.retry_policy import DEFAULT_DEADLINE_S, DEFAULT_RETRIES, RetryPolicy
from dfer_deploy.client.streams import StreamRequests
from dfer_deploy.clips.reading import Clip
from dfer_deploy.plain_data import checked_arguments
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.triton.address import Address, parse_url

T = TypeVar("T")
P = TypeVar("P", bound="ServedPredictor")

OneClip = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]
"""uint8 [T, S, S, 3]."""

ClipBatch = np.ndarray[tuple[int, int, int, int, int], np.dtype[np.uint8]]
"""uint8 [B, T, S, S, 3]."""


class Client(ConnectedModel, AnswersVideos):
    """A blocking client of a served model. Several threads may share it.

    A request that failed because the server is unreachable, full or was restarted is sent again, with exponential
    backoff, until the retries or the deadline are used up. A request that the server refused is not sent again. A
    request without an answer raises a ``CallError``, whose class and ``code`` state the cause.

    Example:
        >>> with Client("grpc://127.0.0.1:8001") as client:
        ...     client.predict(clip).expression
        'happiness'
    """

    @checked_arguments
    def __init__(
        self,
        url: str,
        model: str = "dfer",
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        """Connect, and read the model's configuration.

        Args:
            url: ``grpc://host:port``, ``http://host:port`` or ``host:port`` (gRPC).
            model: the ensemble's name.
            deadline_s: seconds for one request with all its retries, more than 0 and at most 86400. Over gRPC the
                server receives the deadline too, and can drop requests that have expired.
            retries: attempts after the first one, 0 to 1000, with a backoff that grows to 2 s. The default adds up to
                about 16 s of backoff, which is longer than a server's restart. Connecting makes at most 5.

        Raises:
            DferDeployError: an argument is out of range, no server answers at the address, or the server does not have
                the model.
        """
        self._requests = ModelRequests(parse_url(url), model, RetryPolicy(deadline_s, retries))
        self._connection = Connection(self._requests.address)
        try:
            self.run(self._requests.connect())
        except BaseException:
            self._connection.close()
            raise

    @property
    def address(self) -> Address:
        """The server's address."""
        return self._requests.address

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names in the order of the logits. The first access sends a request.

        Raises:
            DferDeployError: the request fails, or the server does not have a label for every class.
        """
        return self.run(self._requests.labels())

    @property
    def predictor(self) -> ServedPredictor:
        """This client as a predictor of batches of frames."""
        return ServedPredictor(self)

    @overload
    def predict(self, clip: OneClip | EncodedImages) -> Answer: ...
    @overload
    def predict(self, clip: ClipBatch) -> list[Answer]: ...
    def predict(self, clip: Any) -> Any:
        """Predict the expression of a clip, or of every clip of a batch. The model always sees 16 frames.

        The class names are read once. Open a new client after the server has loaded a bundle with other class names.

        Args:
            clip: one of

                - a clip: uint8 [T, S, S, 3], RGB in [0, 255], S = ``image_size``, in the order of time. Fewer than 16
                  frames are padded by repeating the last; from more than 16, ``sample_indices`` chooses 16.
                - a batch of such clips: uint8 [B, T, S, S, 3].
                - the encoded images of one clip: JPEG, PNG or WebP of any size, as bytes or paths. The server decodes
                  and resizes them (the ensemble ``…_encoded``).

        Returns:
            One answer, or a list of B answers for a batch.

        Raises:
            ClipError: the clip has another shape or dtype, or an image cannot be read or decoded (here or by the
                server).
            CallError: the request fails.
        """
        return self.run(self._requests.answer(clip))

    def stream(self) -> Stream:
        """Open a live stream, as a context manager: ``with client.stream() as stream: stream.push(frame)``."""
        return Stream(self, StreamRequests(self._requests))

    def encode(self, frames: Frames) -> Float32:
        """Run the image encoder alone: frames uint8 [B, T, S, S, 3] to frame features float32 [B, T, L]."""
        return self.run(self._requests.encode(frames))

    def classify(self, frame_features: Float32) -> Prediction:
        """Run the temporal head alone: frame features float32 [B, T, L] to logits and probabilities [B, C]."""
        return self.run(self._requests.classify(frame_features))

    def predict_frames(self, frames: Frames) -> Prediction:
        """Run the ensemble on frames uint8 [B, T, S, S, 3], 1 ≤ T ≤ 16, without padding or sampling."""
        return self.run(self._requests.predict(frames))

    def run(self, steps: Steps[T]) -> T:
        """Perform the steps of a request (``request_steps.py``) and return their result.

        Raises:
            DferDeployError: the steps raise it.
        """
        return self._connection.run(steps)

    def close(self) -> None:
        """Close the connection. May be called more than once."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stream:
    """A live stream. Threads must not share it.

    The client keeps what the model needs of earlier frames; the server keeps nothing. Any server with the same bundle
    can therefore answer the next frame, also after a restart.
    """

    def __init__(self, client: Client, requests: StreamRequests) -> None:
        self._client, self._requests = client, requests

    def push(self, frame: Clip | EncodedImage) -> StreamAnswer:
        """Send the next frame.

        Args:
            frame: uint8 [S, S, 3], RGB in [0, 255], S = the client's ``image_size``, one frame interval after the
                previous frame. Or an encoded image, JPEG, PNG or WebP of any size, as bytes or a path, which the server
                decodes and resizes (the ensemble ``…_encoded_stream``).

        Returns:
            The answer for the last 16 frames. Before 16 frames have been pushed, this frame is repeated to fill them.

        Raises:
            IncompatibleServerError: the server's bundle was exported by another version of dfer-deploy.
            ClipError: the frame has another shape or dtype, or the image cannot be read or decoded, here or by the
                server. The stream is unchanged, as after the other errors.
            DferDeployError: the deadline or the retries are used up, or the stream is closed. Push the same frame
                again, or the next one.
        """
        return self._client.run(self._requests.push(frame))

    def close(self) -> None:
        """Forget the frames. May be called more than once."""
        self._requests.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ServedPredictor:
    """A client as a :class:`~dfer_deploy.runtimes.predictor.Predictor`. Leaving its context closes the client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def name(self) -> str:
        return f"triton {self._client.address.scheme}"

    @property
    def image_size(self) -> int:
        """Height and width of the frames that the model takes."""
        return self._client.image_size

    @property
    def num_classes(self) -> int:
        return self._client.num_classes

    @property
    def max_batch_size(self) -> int:
        """The largest number of clips in one request. Larger batches are split."""
        return self._client.max_batch_size

    @property
    def graphs_sha256(self) -> tuple[str, str] | None:
        """SHA-256 of the image encoder's and the temporal head's ONNX files; None if the server does not report it."""
        return self._client.graphs_sha256

    def labels(self) -> tuple[str, ...]:
        """Read the class names, in the order of the logits. They are requested once.

        Raises:
            DferDeployError: the request fails, or the server does not have a label for every class.
        """
        return self._client.labels

    def encode(self, frames: Frames) -> Float32:
        """Run the image encoder alone: frames uint8 [B, T, H, W, 3] to frame features float32 [B, T, L]."""
        return self._client.encode(frames)

    def classify(self, frame_features: Float32) -> Prediction:
        """Run the temporal head alone: frame features float32 [B, T, L] to a prediction."""
        return self._client.classify(frame_features)

    def predict(self, frames: Frames) -> Prediction:
        """Run the ensemble: frames uint8 [B, T, H, W, 3], RGB in [0, 255], 1 ≤ T ≤ 16, to a prediction."""
        return self._client.predict_frames(frames)

    def __enter__(self: P) -> P:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()
