"""From live frames to answers, with one stream for every face."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from PIL import Image

from dfer_deploy.answers.clip_answers import StreamAnswer
from dfer_deploy.answers.in_process_stream import FrameStream
from dfer_deploy.clips.faces import Box, FaceDetector, face_crop
from dfer_deploy.clips.reading import Clip, resized
from dfer_deploy.clips.tracks import HOLD_S, FaceTracker
from dfer_deploy.inference.windows import WHOLE, check_following
from dfer_deploy.live.sources import LiveFrame
from dfer_deploy.specs import MAX_FRAMES

_MAX_STEP_S = HOLD_S / 3
"""Limits the tracker's time from one frame to the next, in seconds, unless the frame interval is longer. The session
does not look for faces while it waits for an answer, so a track must not end because the next frame comes late."""


@dataclass(frozen=True)
class FaceAnswer:
    """The answer for one face at one time.

    Attributes:
        track: number of the track, 1, 2, … in the order of appearance; 0 without face detection.
        time_s: time of the frame in seconds.
        start_s: time of the window's first frame in seconds. The window is longer than usual if frames were dropped.
        latency_s: seconds from the frame's arrival to the answer.
        answer: answer for the window that ends with this frame; None while the face is not found.
        box: box in pixels; None without face detection.
    """

    track: int
    time_s: float
    start_s: float
    latency_s: float
    answer: StreamAnswer | None
    box: Box | None


@dataclass
class _Face:
    stream: FrameStream
    held: deque[Clip] = field(default_factory=lambda: deque(maxlen=MAX_FRAMES))
    """The crops that have not been pushed, at most a window; earlier ones would not be in the next window."""
    times_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_FRAMES))


class LiveSession:
    """Finds the faces of every frame and pushes each into its stream. Leaving the context ends the streams."""

    def __init__(
        self,
        new_stream: Callable[[], FrameStream],
        image_size: int,
        detector: FaceDetector | None,
        *,
        margin: float,
        interval_s: float,
    ) -> None:
        """
        Args:
            new_stream: opens a stream for a face that appears.
            image_size: S, the side of the model's square input in pixels.
            detector: finds the faces; None if the whole picture is the face.
            margin: margin added around a face on each side, as a share of its box's longer side, 0 to 2.
            interval_s: seconds between the frames.

        Raises:
            DferDeployError: the margin is out of range, or the interval is too long to follow faces.
        """
        check_following(detector, interval_s, margin)
        self._new_stream, self._image_size, self._detector, self._margin = new_stream, image_size, detector, margin
        self._tracker = FaceTracker()
        self._longest_step_s = max(interval_s, _MAX_STEP_S)
        self._frame_s = self._tracker_s = 0.0
        self._faces: dict[int, _Face] = {}

    def answered(self, frame: LiveFrame) -> list[FaceAnswer]:
        """Answer all faces of the next frame.

        A face that is not found keeps its last box. Its crops are pushed when it is found there again, as for the
        windows of a video (``inference.windows``). Frames that were dropped while an answer was waited for are not in
        any window, and the streams continue with the next frame.

        Raises:
            DferDeployError: a stream raises it.
        """
        if self._detector is None:
            whole = resized(Image.fromarray(frame.image), self._image_size)
            return [self._face_answer(frame, WHOLE, whole, None, detected=True)]
        self._tracker_s += min(frame.time_s - self._frame_s, self._longest_step_s)
        self._frame_s = frame.time_s
        sightings = self._tracker.update(self._tracker_s, self._detector.detect(frame.image))
        present = {sighting.track for sighting in sightings}
        for track in [track for track in self._faces if track not in present]:
            self._faces.pop(track).stream.close()
        return [
            self._face_answer(
                frame,
                sighting.track,
                face_crop(frame.image, sighting.box, self._image_size, margin=self._margin),
                sighting.box,
                detected=sighting.detected,
            )
            for sighting in sightings
        ]

    def close(self) -> None:
        """End the streams."""
        while self._faces:
            self._faces.popitem()[1].stream.close()

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _face_answer(self, frame: LiveFrame, track: int, crop: Clip, box: Box | None, *, detected: bool) -> FaceAnswer:
        face = self._faces.get(track)
        if face is None:
            face = self._faces[track] = _Face(self._new_stream())
        answer: StreamAnswer | None = None
        face.held.append(np.ascontiguousarray(crop))
        face.times_s.append(frame.time_s)
        if detected:
            while face.held:
                answer = face.stream.push(face.held[0])
                face.held.popleft()
        latency_s = time.monotonic() - frame.arrived_s
        return FaceAnswer(track, frame.time_s, face.times_s[0], latency_s, answer, box)
