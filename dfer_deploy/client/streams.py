"""Live streams through the server: one frame a request, every frame encoded once (the ensemble ``…_stream``).

The server keeps no state. The client sends the newest frame with the features of the frames before it, and keeps the
features that the server returns. A failed request can therefore be sent again unchanged, to any server. Features are
valid for one encoder only. When another encoder answers (a new version of the bundle behind the same address), the
client has its window encoded again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dfer_deploy.answers.clip_answers import StreamAnswer, stream_answer_from
from dfer_deploy.client.calls import Infer, Steps, bytes_array
from dfer_deploy.client.request_steps import EncodedImage, ModelRequests, image_bytes
from dfer_deploy.client.retry_policy import RetryState
from dfer_deploy.client.served_model import ServedStream
from dfer_deploy.clips.reading import Clip
from dfer_deploy.errors import CallError, ClipError, MixedServersError, SettingError
from dfer_deploy.runtimes.predictor import Float32

Image = npt.NDArray[np.uint8] | bytes
"""A frame, uint8 [S, S, 3], or the bytes of an encoded image of any size."""

_SAME_ENCODER_TRIES = 3
"""Attempts to send a frame before its window is encoded again. During a rollout two versions answer behind one address,
and sending a frame again costs a sixteenth of encoding its window."""


@dataclass(frozen=True)
class _Frame:
    """A frame of the window, and its features, float32 [L], by the id of the encoder that computed them.

    Each answer adds features. They stay valid even if the push fails.
    """

    image: Image
    features: dict[int, Float32]


@dataclass(frozen=True)
class _Response:
    """A server's answer: logits float32 [C], probabilities float32 [C], the frame's features float32 [L]."""

    logits: Float32
    probabilities: Float32
    features: Float32
    encoder_id: int


class StreamRequests:
    """The steps of one stream, which the blocking and the asynchronous client both run."""

    def __init__(self, requests: ModelRequests) -> None:
        self._requests = requests
        self._recent: tuple[_Frame, ...] = ()
        """The frames before the next one, oldest first, at most N − 1."""
        self._encoder_id = 0
        """The id of the encoder of the last answer; 0 before the first."""
        self._is_pushing = self._is_closed = False

    def push(self, frame: Clip | EncodedImage) -> Steps[StreamAnswer]:
        """Answer the window that ends with ``frame``.

        A push that fails or is cancelled leaves the stream unchanged, so the same frame can be pushed again.

        Raises:
            IncompatibleServerError: the server's bundle was exported by another version of dfer-deploy.
            DferDeployError: the request fails, the frame has another shape or dtype, the stream is closed, or another
                push is still waiting for its answer.
        """
        if self._is_closed:
            raise SettingError("the stream is closed; open another one with client.stream()")
        if self._is_pushing:
            raise ClipError("another push of this stream still waits for its answer; push one frame after the other")
        self._is_pushing = True
        try:
            image = self._checked(frame)
            served = yield from self._requests.stream()
            window = [*self._recent, _Frame(image, {})]
            response = yield from self._window_response(served, window)
            resumed = bool(self._recent) and response.encoder_id != self._encoder_id
            labels = yield from self._requests.labels_of(response.encoder_id)
            if not self._is_closed:  # it may have been closed during the request
                self._recent, self._encoder_id = tuple(window[-served.recent_frames :]), response.encoder_id
            return stream_answer_from(
                labels, response.logits, response.probabilities, frames=len(window), resumed=resumed
            )
        finally:
            self._is_pushing = False

    def close(self) -> None:
        """Forget the frames. No request is needed, because the server keeps no state."""
        self._is_closed, self._recent = True, ()

    def _window_response(self, served: ServedStream, window: Sequence[_Frame]) -> Steps[_Response]:
        """The response for the window's last frame, from the encoder that computed the features of the earlier frames.

        If another encoder answers than the intended one, its features are kept too. In the end the features of one
        encoder are complete.
        """
        *recent, newest = window
        state = self._requests.policy.start()
        tries = misses = 0
        given_up: set[int] = set()
        while True:
            meant = self._encoder_of_most(recent, given_up)
            missing = next((frame for frame in recent if meant not in frame.features), None)
            if missing is None:
                features = [frame.features[meant] for frame in recent]
                response = yield from self._sent(state, served, newest.image, features)
                newest.features[response.encoder_id] = response.features
                if response.encoder_id == meant or not recent:
                    return response
                tries += 1
                if tries % _SAME_ENCODER_TRIES == 0:
                    given_up.add(meant)
            else:
                response = yield from self._sent(state, served, missing.image, ())
                missing.features[response.encoder_id] = response.features
            given_up.discard(response.encoder_id)
            misses += meant not in (0, response.encoder_id)
            if misses > 2 * len(window):
                yield from state.back_off(self._mixed_servers())

    def _encoder_of_most(self, frames: Sequence[_Frame], given_up: set[int]) -> int:
        """The id of the encoder with features of the most frames; of equals, that of the last answer; 0 without any."""
        known = Counter(number for frame in frames for number in frame.features if number not in given_up)
        return max(known, key=lambda number: (known[number], number == self._encoder_id), default=0)

    def _sent(
        self, state: RetryState, served: ServedStream, image: Image, recent: Sequence[Float32]
    ) -> Steps[_Response]:
        """Send an image as the frame that follows the frames with the features ``recent``."""
        recent_features = np.zeros((1, served.recent_frames, served.features), np.float32)
        if recent:
            recent_features[0, : len(recent)] = recent
        name, newest = (
            (f"{self._requests.model.name}_encoded_stream", {"images": bytes_array([image])})
            if isinstance(image, bytes)
            else (served.name, {"frames": image[np.newaxis, np.newaxis]})
        )
        inputs = {**newest, "recent_features": recent_features, "recent_count": np.array([[len(recent)]], np.int32)}
        call = Infer(name, inputs, ("logits", "probabilities", "frame_features", "encoder_id"))
        logits, probabilities, features, ids = yield from self._requests.responses(state, call)
        checked, classes = self._requests.checked, self._requests.model.num_classes
        return _Response(
            checked(logits, "logits", (1, classes))[0],
            checked(probabilities, "probabilities", (1, classes))[0],
            checked(features, "frame_features", (1, 1, served.features))[0, 0],
            int(checked(ids, "encoder_id", (1, 1), np.int32)[0, 0]),
        )

    def _mixed_servers(self) -> CallError:
        return MixedServersError(
            f"servers of different weights answer at {self._requests.address} in turn, so that a stream cannot go on; "
            "wait until all of them serve one bundle"
        )

    def _checked(self, frame: Clip | EncodedImage) -> Image:
        if isinstance(frame, EncodedImage):
            return image_bytes(frame)
        size = self._requests.model.image_size
        expected = f"expected uint8 [{size}, {size}, 3], RGB in [0, 255], or the bytes or the path of an encoded image"
        if not isinstance(frame, np.ndarray):
            raise ClipError(f"the frame is of the type {type(frame).__name__}, {expected}")
        if frame.dtype != np.uint8 or frame.shape != (size, size, 3):
            raise ClipError(f"the frame has the shape {list(frame.shape)} and the dtype {frame.dtype}, {expected}")
        image: npt.NDArray[np.uint8] = frame.copy()  # the caller may write the next frame into the same array
        return image
