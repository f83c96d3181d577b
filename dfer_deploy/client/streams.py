"""Live streams through the server: one frame a request, every frame encoded once (the ensemble ``…_stream``).

The server keeps the last 16 frames' features of a stream; the client keeps the frames themselves. When the server has
lost the stream (it was restarted, it let the stream idle out, or an answer did not come, so that nobody knows what it
holds), the client opens a new one and sends the present window again: the answers go on exactly as if nothing had been.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from dfer_deploy.answers import StreamAnswer, stream_answer_from
from dfer_deploy.client.calls import Flow, Infer, Position
from dfer_deploy.client.failures import CallError
from dfer_deploy.client.patience import Patience, Question
from dfer_deploy.clips.reading import Clip
from dfer_deploy.errors import DferDeployError
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.specs import MAX_FRAMES

if TYPE_CHECKING:
    from dfer_deploy.client.asynchronous import AsyncClient
    from dfer_deploy.client.blocking import Client
    from dfer_deploy.client.flows import Flows

END_TIMEOUT_S = 5.0
"""For telling the server that a stream has ended; it finds out by itself when the stream has idled out."""


class StreamFlows:
    """One stream's steps, for the blocking and the asynchronous client alike."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self._window: deque[Clip] = deque(maxlen=MAX_FRAMES)
        self._correlation_id = 0
        self._is_open = False

    def push(self, frame: Clip) -> Flow[StreamAnswer]:
        """The answer for the window that ends with ``frame``.

        A frame that could not be answered stays in the window: the next one resumes with it.
        """
        labels = yield from self._flows.labels()
        model, resumed = self._flows.model, False
        size = model.image_size
        if frame.dtype != np.uint8 or frame.shape != (size, size, 3):
            raise DferDeployError(
                f"the frame has the shape {list(frame.shape)} and the dtype {frame.dtype}, "
                f"expected uint8 [{size}, {size}, 3], RGB in [0, 255]"
            )
        # The caller may write the next frame into the same array.
        self._window.append(frame.copy())
        question = self._flows.patience.question()
        while True:
            was_open = self._is_open
            resumed = resumed or (not was_open and len(self._window) > 1)
            try:
                logits, probabilities = yield from self._answered(question)
                break
            except CallError as error:
                # A full queue refuses before anything is done, so that the stream is as it was. After any other failure
                # nobody knows what the server holds.
                if error.kind != "full":
                    self._is_open = False
                # A stream that the server does not know (any more) is refused.
                if not error.retryable and not (error.kind == "refused" and was_open):
                    raise
                if error.retryable:
                    yield from question.pause_after(error)
        shape = (1, model.num_classes)
        return stream_answer_from(
            labels,
            self._flows.checked(logits, "logits", shape)[0],
            self._flows.checked(probabilities, "probabilities", shape)[0],
            frames=len(self._window),
            resumed=resumed,
        )

    def end(self) -> Flow[None]:
        """Tells the server that no frame will follow; what goes wrong with that does not matter."""
        if not self._is_open:
            return
        self._is_open = False
        patience = self._flows.patience
        question = Patience(min(END_TIMEOUT_S, patience.deadline_s), 0, patience.clock).question()
        with contextlib.suppress(DferDeployError):
            # Triton knows no end without a request; the answer for a frame that comes twice is thrown away.
            yield from self._sent(question, self._window[-1], Position(self._correlation_id, end=True))

    def _answered(self, question: Question) -> Flow[list[Float32]]:
        if self._is_open:
            return (yield from self._sent(question, self._window[-1], Position(self._correlation_id)))
        self._correlation_id = secrets.randbits(62) + 1
        first, *others = self._window
        answer = yield from self._sent(question, first, Position(self._correlation_id, start=True))
        for frame in others:
            answer = yield from self._sent(question, frame, Position(self._correlation_id))
        self._is_open = True
        return answer

    def _sent(self, question: Question, frame: Clip, position: Position) -> Flow[list[Float32]]:
        call = Infer(
            f"{self._flows.model.name}_stream",
            "frames",
            frame[np.newaxis, np.newaxis],
            ("logits", "probabilities"),
            position=position,
        )
        return (yield from self._flows.reply(question, call))


class Stream:
    """A live stream; leaving the context ends it. Not for use by several threads at the same time."""

    def __init__(self, client: Client, flows: StreamFlows) -> None:
        self._client, self._flows = client, flows

    def push(self, frame: Clip) -> StreamAnswer:
        """Sends the next frame.

        Args:
            frame: uint8 [S, S, 3], RGB in [0, 255], S = the client's ``image_size``; one frame interval after the last.

        Returns:
            The answer for the last 16 frames; before 16 have come, for those, padded by repeating this one.

        Raises:
            DferDeployError: there was no answer within the deadline and the retries. The frame is still in the window.
        """
        return self._client.run(self._flows.push(frame))

    def close(self) -> None:
        """Ends the stream. Can be repeated."""
        self._client.run(self._flows.end())

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream:
    """As ``Stream``, with coroutines. One push at a time: frames have an order."""

    def __init__(self, client: AsyncClient, flows: StreamFlows) -> None:
        self._client, self._flows = client, flows

    async def push(self, frame: Clip) -> StreamAnswer:
        """As ``Stream.push``."""
        return await self._client.run(self._flows.push(frame))

    async def close(self) -> None:
        """As ``Stream.close``."""
        await self._client.run(self._flows.end())

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
