"""A live stream in this process: every frame is encoded once, the last 16 frames' features are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dfer_deploy.clips.reading import Clip
from dfer_deploy.clips.sampling import padded
from dfer_deploy.errors import SettingError
from dfer_deploy.inference.answers import StreamAnswer, stream_answer_from
from dfer_deploy.runtimes.predictor import Float32, Predictor
from dfer_deploy.specs import MAX_FRAMES


class FrameStream(Protocol):
    """What frames are pushed into: a stream in this process, or one through a server (``client.Stream``)."""

    def push(self, frame: Clip) -> StreamAnswer:
        """Return the answer for the window that ends with ``frame``, uint8 [S, S, 3]."""
        ...

    def close(self) -> None:
        """End the stream."""
        ...


class InProcessStream:
    """Answers for the last 16 frames; before 16 have come, for those padded by repeating the newest.

    The answer is that of ``predictor.predict`` for the same 16 frames, to the rounding of another batch size.
    """

    def __init__(self, predictor: Predictor, labels: Sequence[str]) -> None:
        """
        Args:
            predictor: may serve many streams, one push at a time.
            labels: the class names in the order of the logits.
        """
        self._predictor, self._labels = predictor, tuple(labels)
        self._features: deque[Float32] = deque(maxlen=MAX_FRAMES)
        self._is_closed = False

    def push(self, frame: Clip) -> StreamAnswer:
        """Return the answer for the window that ends with ``frame``.

        Args:
            frame: uint8 [S, S, 3], RGB in [0, 255], one frame interval after the last.

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
        """Forget the frames. Can be repeated."""
        self._is_closed = True
        self._features.clear()
