"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

from dfer_deploy.answers.clip_answers import Answer, StreamAnswer
from dfer_deploy.answers.video_windows import Faces
from dfer_deploy.client.blocking import Client, ClipBatch, OneClip
from dfer_deploy.client.calls import Steps
from dfer_deploy.client.connection import AsyncConnection
from dfer_deploy.client.request_steps import ConnectedModel, EncodedImage, EncodedImages, ModelRequests, not_connected
from dfer_deploy.client.retry_policy import DEFAULT_DEADLINE_S, DEFAULT_RETRIES, RetryPolicy
from dfer_deploy.client.streams import StreamRequests
from dfer_deploy.clips.faces import DEFAULT_MARGIN
from dfer_deploy.clips.reading import Clip
from dfer_deploy.inference.windows import DEFAULT_STRIDE, Window
from dfer_deploy.plain_data import checked_arguments
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction
from dfer_deploy.triton.address import parse_url

T = TypeVar("T")


class AsyncClient(ConnectedModel):
    """:class:`~dfer_deploy.client.blocking.Client` with coroutines. Several requests may be in flight at a time.

    Example:
        >>> async with AsyncClient("grpc://127.0.0.1:8001") as client:
        ...     answers = await asyncio.gather(*(client.predict(clip) for clip in clips))
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
        """Check and keep the arguments, which are those of ``Client``. Entering the context, or ``connect``, connects.

        Raises:
            DferDeployError: an argument is out of range.
        """
        self._url = url
        self._requests = ModelRequests(parse_url(url), model, RetryPolicy(deadline_s, retries))
        self._connection: AsyncConnection | None = None

    async def connect(self) -> None:
        """Connect, and read the model's configuration and its class names.

        Raises:
            DferDeployError: no server answers at the address, or the server does not have the model.
        """
        self._connection = AsyncConnection(self._requests.address)
        try:
            await self.run(self._requests.connect())
            await self.run(self._requests.labels())
        except BaseException:
            await self._connection.close()
            raise

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names in the order of the logits."""
        return self._requests.known_labels

    @overload
    async def predict(self, clip: OneClip | EncodedImages) -> Answer: ...
    @overload
    async def predict(self, clip: ClipBatch) -> list[Answer]: ...
    async def predict(self, clip: Any) -> Any:
        """Predict the expression of a clip, or of every clip of a batch, as ``Client.predict`` does."""
        return await self.run(self._requests.answer(clip))

    async def predict_video(
        self,
        path: str | Path,
        *,
        interval_s: float | None = None,
        stride: int = DEFAULT_STRIDE,
        faces: Faces = "centerface",
        margin: float = DEFAULT_MARGIN,
    ) -> AsyncIterator[Window]:
        """Predict the expressions of a video over time, as ``Client.predict_video`` does.

        Decoding, detection and the requests run in threads, so the event loop is not blocked.
        """
        policy, address, model = self._requests.policy, self._requests.address, self._requests.model.name

        def windows() -> Generator[Window, None, None]:
            with Client(str(address), model, deadline_s=policy.deadline_s, retries=policy.retries) as client:
                yield from client.predict_video(path, interval_s=interval_s, stride=stride, faces=faces, margin=margin)

        # Everything runs in the thread. Closing is queued there behind the current step, and is not waited for.
        thread, found = ThreadPoolExecutor(1, "predict_video"), windows()
        try:
            loop = asyncio.get_running_loop()
            while (window := await loop.run_in_executor(thread, next, found, None)) is not None:
                yield window
        finally:
            thread.submit(found.close)
            thread.shutdown(wait=False)

    def stream(self) -> AsyncStream:
        """Open a live stream: ``async with client.stream() as stream: await stream.push(frame)``."""
        return AsyncStream(self, StreamRequests(self._requests))

    async def encode(self, frames: Frames) -> Float32:
        """Run the image encoder alone, as ``Client.encode`` does."""
        return await self.run(self._requests.encode(frames))

    async def classify(self, frame_features: Float32) -> Prediction:
        """Run the temporal head alone, as ``Client.classify`` does."""
        return await self.run(self._requests.classify(frame_features))

    async def predict_frames(self, frames: Frames) -> Prediction:
        """Run the ensemble on frames, as ``Client.predict_frames`` does."""
        return await self.run(self._requests.predict(frames))

    async def run(self, steps: Steps[T]) -> T:
        """Perform the steps of a request (``request_steps.py``) and return their result.

        Raises:
            DferDeployError: the client is not connected, or the steps raise it.
        """
        if self._connection is None:
            raise not_connected()
        return await self._connection.run(steps)

    async def close(self) -> None:
        """Close the connection. May be called more than once."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStream:
    """``Stream`` with coroutines. Push one frame at a time, because frames have an order."""

    def __init__(self, client: AsyncClient, requests: StreamRequests) -> None:
        self._client, self._requests = client, requests

    async def push(self, frame: Clip | EncodedImage) -> StreamAnswer:
        """Send the next frame, as ``Stream.push`` does."""
        return await self._client.run(self._requests.push(frame))

    async def close(self) -> None:
        """Forget the frames. May be called more than once."""
        self._requests.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
