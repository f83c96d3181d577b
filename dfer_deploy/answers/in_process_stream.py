"""A live stream in this process. Every frame is encoded once, and the features of the last 16 frames are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dfer_deploy.answers.clip_answers import StreamAnswer, stream_answer_from
from dfer_deploy.clips.reading import Clip
from dfer_deploy.clips.sampling import padded
from dfer_deploy.errors import SettingError
from dfer_deploy.runtimes.predictor import Float32, Predictor
from dfer_deploy.specs import MAX_FRAMES


class FrameStream(Protocol):
    """A live stream, in this process or through a server (``client.Stream``)."""

    def push(self, frame: Clip) -> StreamAnswer:
        """Answer the window that ends with ``frame``, uint8 [S, S, 3]."""
        ...

    def close(self) -> None:
        """End the stream."""
        ...


class InProcessStream:
    """A live stream in this process. Each answer is for the last 16 frames.

    Before 16 frames have been pushed, the newest is repeated to fill them. Apart from rounding, which depends on the
    batch size, the answer is that of ``predictor.predict`` for the same 16 frames.
    """

    def __init__(self, predictor: Predictor, labels: Sequence[str]) -> None:
        """
        Args:
            predictor: computes features and answers. Several streams may share it if they push one at a time.
            labels: class names in the order of the logits.
        """
        self._predictor, self._labels = predictor, tuple(labels)
        self._features: deque[Float32] = deque(maxlen=MAX_FRAMES)
        self._is_closed = False

    def push(self, frame: Clip) -> StreamAnswer:
        """Answer the window that ends with ``frame``.

        Args:
            frame: uint8 [S, S, 3], RGB in [0, 255], one frame interval after the previous frame.

        Raises:
            DferDeployError: the frame has another shape than the model takes, or the stream is closed.
        """
        if self._is_closed:
            raise SettingError("the stream is closed; open another one")
        self._features.append(self._predictor.encode(frame[np.newaxis, np.newaxis])[0, 0])
        prediction = self._predictor.classify(padded(self._features)[np.newaxis])
        return stream_answer_from(
            self._labels, prediction.logits[0], prediction.probabilities[0], frames=len(self._features)
        )

    def close(self) -> None:
        """Forget the frames. May be called more than once."""
        self._is_closed = True
        self._features.clear()
