"""The blocking client."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np

from dfer_deploy.client.calls import Steps
from dfer_deploy.client.connection import Connection
from dfer_deploy.client.request_steps import ConnectedModel, EncodedImage, EncodedImages, ModelRequests
from dfer_deploy.client.retry_policy import DEFAULT_DEADLINE_S, DEFAULT_RETRIES, RetryPolicy
from dfer_deploy.client.streams import StreamRequests
from dfer_deploy.clips.reading import Clip
from dfer_deploy.inference.answers import Answer, StreamAnswer
from dfer_deploy.inference.video_windows import AnswersVideos
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.triton.address import Address, parse_url

T = TypeVar("T")
P = TypeVar("P", bound="ServedPredictor")

OneClip = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]
"""uint8 [T, S, S, 3]."""

ClipBatch = np.ndarray[tuple[int, int, int, int, int], np.dtype[np.uint8]]
"""uint8 [B, T, S, S, 3]."""


class Client(ConnectedModel, AnswersVideos):
    """Asks a served model. For use by several threads.

    Requests that failed because the server is away, full or was restarted are sent again, with exponential backoff,
    until the retries or the deadline are used up; what the server refused is not. Where there is no answer, the error
    is a ``CallError``, whose class and ``code`` say why.

    Example:
        >>> with Client("grpc://127.0.0.1:8001") as client:
        ...     client.predict(clip).expression
        'happiness'
    """

    def __init__(
        self,
        url: str,
        model: str = "dfer",
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        """Connect, and read what the model is.

        Args:
            url: ``grpc://host:port``, ``http://host:port`` or ``host:port`` (gRPC).
            model: the ensemble's name.
            deadline_s: for every request with all its retries. gRPC sends it along, so that the server does not work
                for nobody.
            retries: after the first attempt, with a backoff that grows to 2 s. The default ones last about 16 s, longer
                than a server's restart. Connecting has at most 5.

        Raises:
            DferDeployError: an argument is out of range, no server answers there, or it has no such model.
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
        """The class names in the order of the logits. The first time, the server is asked.

        Raises:
            DferDeployError: the server knows no label for a class.
        """
        return self.run(self._requests.labels())

    @property
    def predictor(self) -> ServedPredictor:
        """What answers batches of frames: this client."""
        return ServedPredictor(self)

    @overload
    def predict(self, clip: OneClip | EncodedImages) -> Answer: ...
    @overload
    def predict(self, clip: ClipBatch) -> list[Answer]: ...
    def predict(self, clip: Any) -> Any:
        """Ask about a clip. The model always sees 16 frames, as at test time.

        The class names are those of the server when the client first asked for them: open another client where a
        bundle with other names is served at the same address.

        Args:
            clip: uint8 [T, S, S, 3], RGB in [0, 255], S = ``image_size``, in the order of time: fewer than 16 frames
                are padded by repeating the last, of more than 16 those of ``sample_indices`` are sent. Or a batch of
                such clips, [B, T, S, S, 3]. Or a list of encoded images, JPEG, PNG or WebP of any size, as bytes or
                paths, which the server decodes and resizes (the ensemble ``…_encoded``).

        Returns:
            One answer; for a batch, a list of B.

        Raises:
            DferDeployError: there is no answer, with the reason.
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
        """Run the ensemble on frames uint8 [B, T, S, S, 3], 1 ≤ T ≤ 16; they are neither padded nor sampled."""
        return self.run(self._requests.predict(frames))

    def run(self, steps: Steps[T]) -> T:
        """Perform steps of ``request_steps.py``, and return their result."""
        return self._connection.run(steps)

    def close(self) -> None:
        """Close the connection. Can be repeated."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stream:
    """A live stream. Not for use by several threads at the same time.

    The client remembers what the model needs of earlier frames, so no server knows of the stream: it goes on wherever
    the next frame is answered, also after a restart.
    """

    def __init__(self, client: Client, requests: StreamRequests) -> None:
        self._client, self._requests = client, requests

    def push(self, frame: Clip | EncodedImage) -> StreamAnswer:
        """Send the next frame.

        Args:
            frame: uint8 [S, S, 3], RGB in [0, 255], S = the client's ``image_size``; one frame interval after the last.
                Or an encoded image, JPEG, PNG or WebP of any size, as bytes or a path, which the server decodes and
                resizes (the ensemble ``…_encoded_stream``).

        Returns:
            The answer for the last 16 frames; before 16 have come, for those, padded by repeating this one.

        Raises:
            IncompatibleServerError: the server's streams are of another version of dfer-deploy.
            DferDeployError: there was no answer within the deadline and the retries, the model takes no such frame,
                or the stream is closed. The stream is then as before: the same frame can be pushed again, or the next.
        """
        return self._client.run(self._requests.push(frame))

    def close(self) -> None:
        """Forget the frames. Can be repeated."""
        self._requests.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ServedPredictor:
    """A client in the form of a :class:`~dfer_deploy.runtimes.predictor.Predictor`; leaving it closes the client."""

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
        """The largest number of clips that the server takes in one request; larger batches are split."""
        return self._client.max_batch_size

    @property
    def graphs_sha256(self) -> tuple[str, str] | None:
        """SHA-256 of the image encoder's and the temporal head's ONNX files; None if the server does not report it."""
        return self._client.graphs_sha256

    def labels(self) -> tuple[str, ...]:
        """Return the class names, in the order of the logits.

        Raises:
            DferDeployError: the server knows no label for a class.
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
