"""Live streams through the server: one frame a request, every frame encoded once (the ensemble ``…_stream``).

The server keeps the last 16 frames' features of a stream; the client keeps the frames themselves. When the server has
lost the stream (it was restarted, it let the stream idle out, or an answer did not come, so that nobody knows what it
holds), the client ends what may be left of it, opens a new one and sends the present window again: the answers go on
exactly as if nothing had been.
"""

from __future__ import annotations

import contextlib
import secrets

import numpy as np

from dfer_deploy.answers import StreamAnswer, stream_answer_from
from dfer_deploy.client.calls import Flow, Infer, Pause, Position
from dfer_deploy.client.failures import CallError
from dfer_deploy.client.flows import Flows
from dfer_deploy.client.patience import Patience, Question
from dfer_deploy.clips.reading import Clip
from dfer_deploy.errors import DferDeployError, NoPlaceError
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.specs import MAX_FRAMES, require

END_TIMEOUT_S = 5.0
"""For telling the server that a stream has ended; it finds out by itself when the stream has idled out. So long a push
that is in flight is waited for before."""

_LOOK_AGAIN_S = 0.01


class StreamFlows:
    """One stream's steps, for the blocking and the asynchronous client alike."""

    def __init__(self, flows: Flows, place_timeout_s: float | None = None) -> None:
        """
        Args:
            flows: of the model.
            place_timeout_s: how long the first frame may wait for a place among the server's streams, more than 0; None
                for nearly the deadline.

        Raises:
            DferDeployError: the timeout is out of range.
        """
        require(
            place_timeout_s is None or (isinstance(place_timeout_s, int | float) and 0 < place_timeout_s <= 86_400),
            f"the timeout for a place is {place_timeout_s!r} s, expected more than 0 and at most 86400, or None",
        )
        self._flows, self._place_timeout_s = flows, place_timeout_s
        self._window: list[Clip] = []
        self._correlation_id = 0
        """Of the sequence that the server may hold; 0 before the first."""
        self._is_current = False
        """The server's sequence holds this window, for certain."""
        self._is_pushing = self._is_closed = False

    def push(self, frame: Clip) -> Flow[StreamAnswer]:
        """The answer for the window that ends with ``frame``.

        A push that fails or is cancelled leaves the stream as it was before: pushing the same frame again is exact.

        Raises:
            NoPlaceError: the server follows as many streams as it may.
            DferDeployError: there is no answer; the frame is none of the model's; the stream is closed, or a push is
                still waiting for its answer.
        """
        if self._is_pushing:
            raise DferDeployError("a push waits for its answer; a stream takes one frame after the other, so await it")
        self._is_pushing = True
        try:
            labels = yield from self._flows.labels()
            # The caller may write the next frame into the same array.
            window = [*self._window, self._checked(frame).copy()][-MAX_FRAMES:]
            (logits, probabilities), resumed = yield from self._answered(self._flows.patience.question(), window)
            shape = (1, self._flows.model.num_classes)
            answer = stream_answer_from(
                labels,
                self._flows.checked(logits, "logits", shape)[0],
                self._flows.checked(probabilities, "probabilities", shape)[0],
                frames=len(window),
                resumed=resumed,
            )
            self._window, self._is_current = window, True
            return answer
        except CallError as error:
            if error.kind == "crowded":
                raise NoPlaceError(str(error)) from error
            raise
        finally:
            self._is_pushing = False

    def end(self) -> Flow[None]:
        """Tells the server that no frame will follow; what goes wrong with that does not matter."""
        self._is_closed = True
        clock, patience_s = self._flows.patience.clock, min(END_TIMEOUT_S, self._flows.patience.deadline_s)
        last_look = clock() + patience_s
        # An END that overtakes a frame ends nothing that the frame begins.
        while self._is_pushing and clock() < last_look:
            yield Pause(_LOOK_AGAIN_S)
        question = Patience(patience_s, 0, clock).question()
        with contextlib.suppress(DferDeployError):
            yield from self._ended(question)

    def _answered(self, question: Question, window: list[Clip]) -> Flow[tuple[list[Float32], bool]]:
        """The answer for a window whose last frame is new, and whether the window was sent again."""
        resumed = False
        while True:
            # Until the answer is there, nobody knows what the server holds.
            was_current, self._is_current = self._is_current, False
            resumed = resumed or (not was_current and len(window) > 1)
            try:
                if was_current:
                    return (yield from self._sent(question, window[-1], Position(self._correlation_id))), resumed
                return (yield from self._opened(question, window)), resumed
            except CallError as error:
                if error.kind == "full":  # which refuses before anything is done
                    self._is_current = was_current
                    raise
                # A stream that the server does not know (any more) is refused.
                if error.kind == "refused" and was_current:
                    continue
                if not error.retryable:
                    raise
                yield from question.pause_after(error)

    def _opened(self, question: Question, window: list[Clip]) -> Flow[list[Float32]]:
        """Sends the whole window as a new sequence."""
        # What is left of the last one would keep its place among the server's streams until it has idled out.
        yield from self._ended(question)
        name = secrets.randbits(62) + 1
        answer: list[Float32] = []
        for index, frame in enumerate(window):
            answer = yield from self._sent(question, frame, Position(name, start=index == 0))
        return answer

    def _ended(self, question: Question) -> Flow[None]:
        """Ends the sequence that the server may hold."""
        if not self._correlation_id:
            return
        position, size = Position(self._correlation_id, end=True), self._flows.model.image_size
        try:
            # Triton knows no end without a request; its answer is thrown away.
            yield from self._sent(question, np.zeros((size, size, 3), np.uint8), position)
        except CallError as error:
            if error.kind != "refused":  # as it is where the server does not know the sequence (any more)
                raise
        self._correlation_id = 0

    def _sent(self, question: Question, frame: Clip, position: Position) -> Flow[list[Float32]]:
        call = Infer(
            f"{self._flows.model.name}_stream",
            "frames",
            frame[np.newaxis, np.newaxis],
            ("logits", "probabilities"),
            position=position,
            place_timeout_s=self._place_timeout_s if position.start else None,
        )
        while True:
            if self._is_closed and not position.end:
                raise DferDeployError("the stream is closed; open another one with client.stream()")
            if position.start:
                self._correlation_id = position.correlation_id
            try:
                return (yield from self._flows.reply(question, call))
            except CallError as error:
                if error.kind != "full":
                    raise
                yield from question.pause_after(error)

    def _checked(self, frame: Clip) -> Clip:
        size = self._flows.model.image_size
        expected = f"expected uint8 [{size}, {size}, 3], RGB in [0, 255]"
        if not isinstance(frame, np.ndarray):
            raise DferDeployError(f"the frame is a {type(frame).__name__}, {expected}")
        if frame.dtype != np.uint8 or frame.shape != (size, size, 3):
            raise DferDeployError(
                f"the frame has the shape {list(frame.shape)} and the dtype {frame.dtype}, {expected}"
            )
        return frame
