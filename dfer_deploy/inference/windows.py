"""From a video to answers over time: windows of 16 frames of every face, each frame encoded once.

Decoding, detection and the model run in parallel. Two threads work ahead of the one that calls the model, by only a few
frames, so that memory does not grow with the length of the video.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dfer_deploy.clips.faces import DEFAULT_MARGIN, MAX_MARGIN, Box, FaceDetector, face_crop
from dfer_deploy.clips.prefetch import prefetched
from dfer_deploy.clips.reading import Clip, DecodedFrame, clip_from_path, resized
from dfer_deploy.clips.sampling import Indices, padded, sample_indices
from dfer_deploy.clips.timed import TimedFrame, shown_frames, timed_frames
from dfer_deploy.clips.tracks import HOLD_S, FaceTracker
from dfer_deploy.runtimes.predictor import Float32, Predictor
from dfer_deploy.specs import require

WINDOW = 16
"""Frames in a window, which is what the model sees at a time."""

DEFAULT_FRAME_INTERVAL_S = 1 / 6
"""Frame interval, in seconds, if that of the training clips is unknown. DFEW's median clip has about the same (16 of 70
frames at 25 a second: 0.175 s)."""

DEFAULT_STRIDE = 4
"""Frames from one window to the next."""

WHOLE = 0
"""The track number of windows of whole frames, without face detection."""

_IMAGES_AHEAD, _CROPS_AHEAD = 2, 8
"""Limit the frames that wait for the detector (up to 200 MB each), and the crops that wait for the model."""


@dataclass(frozen=True)
class Window:
    """The answer for up to 16 frames of one face.

    Attributes:
        track: number of the track, 1, 2, … in the order of appearance; 0 without face detection.
        start_s: time of the first frame, in seconds since the video's first; NaN for a folder of frames.
        end_s: time of the last frame, in seconds. For a window of a whole video, the end of the video; NaN for a folder
            of frames.
        logits: float32 [C].
        probabilities: float32 [C].
        frames: number of frames before padding, 1 to 16. Fewer than 16 are padded by repeating the last.
        detection: mean detection score of the frames, in [0, 1]. A frame in which the face was not found counts with
            the previous score. 1 without face detection.
        labels: C class names, in the order of the logits.
    """

    track: int
    start_s: float
    end_s: float
    logits: Float32
    probabilities: Float32
    frames: int
    detection: float
    labels: tuple[str, ...]

    @property
    def expression(self) -> str:
        """The name of the most probable class."""
        return self.labels[int(self.logits.argmax())]

    @property
    def confidence(self) -> float:
        """The probability of the most probable class, in [0, 1]."""
        return float(self.probabilities[self.logits.argmax()])

    @property
    def middle_s(self) -> float:
        """The middle of the window in seconds, at which its answer is shown."""
        return (self.start_s + self.end_s) / 2

    @property
    def times_s(self) -> tuple[float | None, float | None]:
        """Start and end in seconds, rounded to milliseconds; None if the input has no times."""
        start_s, end_s = (None if math.isnan(time_s) else round(time_s, 3) for time_s in (self.start_s, self.end_s))
        return start_s, end_s

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data, as ``predict --json`` writes it, with probabilities and logits by class name."""
        start_s, end_s = self.times_s
        return {
            "track": self.track,
            "start_s": start_s,
            "end_s": end_s,
            "frames": self.frames,
            "detection": self.detection,
            "expression": self.expression,
            "confidence": self.confidence,
            "probabilities": dict(zip(self.labels, self.probabilities.tolist(), strict=True)),
            "logits": dict(zip(self.labels, self.logits.tolist(), strict=True)),
        }


@dataclass(frozen=True)
class Face:
    """What the model sees of one face at one time.

    Attributes:
        track: number of the track, as in ``Window``.
        crop: uint8 [S, S, 3].
        score: detection score, in [0, 1].
        detected: False if the face was not found and its last box is held.
        box: box in pixels of the upright frame; None without face detection.
    """

    track: int
    crop: Clip
    score: float = 1.0
    detected: bool = True
    box: Box | None = None


@dataclass(frozen=True)
class SeenFrame:
    """All faces at one time, in seconds since the video's first frame."""

    time_s: float
    faces: tuple[Face, ...]


class ConfirmedFaces:
    """Omits the held boxes at the end of a track, whose face is not found again.

    Faces with a held box are kept back until their track's face is found again, at most for ``clips.tracks.HOLD_S``.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[float, Face]]] = {}

    def add(self, frame: SeenFrame) -> list[tuple[float, Face]]:
        """Add the next frame, and return the faces that it confirms with their times, ordered by time in each track."""
        self._held = {face.track: self._held.get(face.track, []) for face in frame.faces}
        confirmed = []
        for face in frame.faces:
            held = self._held[face.track]
            held.append((frame.time_s, face))
            if face.detected:
                confirmed += held
                self._held[face.track] = []
        return confirmed


def windows_of_video(
    video: Path,
    predictor: Predictor,
    image_size: int,
    *,
    labels: Sequence[str],
    interval_s: float = DEFAULT_FRAME_INTERVAL_S,
    stride: int = DEFAULT_STRIDE,
    detector: FaceDetector | None = None,
    margin: float = DEFAULT_MARGIN,
    seen: Callable[[SeenFrame], None] | None = None,
) -> Generator[Window, None, None]:
    """Yield the answered windows of a video, those of each track in the order of time.

    The windows of a track begin ``stride`` frames apart. The last one ends with the track's last frame, so it may begin
    less than ``stride`` frames after the one before. A track of fewer than 16 frames is one window. Without a detector,
    a video with fewer than 16 frames at this interval is one window of 16 frames spread over the whole video
    (``whole_window``).

    Args:
        video: a video file.
        predictor: answers batches of frames. Only the caller's thread uses it.
        image_size: S, the side of the model's square input in pixels.
        labels: C class names, in the order of the logits.
        interval_s: seconds between two frames of a window, 0.01 to 60; with a detector, at most 0.75.
        stride: frames from one window to the next, at least 1.
        detector: finds the faces; None if the whole picture is the face.
        margin: margin added around a face on each side, as a share of its box's longer side, 0 to 2.
        seen: called with every frame, in the order of time, before the windows that end with it.

    Raises:
        DferDeployError: the video cannot be read (``clips.timed.timed_frames``), a number is out of range, or the
            predictor raises it.
    """
    require(stride >= 1, f"the stride is {stride}, expected 1 or more frames")
    check_following(detector, interval_s, margin)
    maker = WindowMaker(predictor, stride, labels)
    frames = 0
    with _seen_frames(video, image_size, interval_s, detector, margin) as seen_frames:
        for frame in seen_frames:
            frames += 1
            if seen:
                seen(frame)
            yield from maker.add(frame)
    if detector is None and frames < WINDOW:
        yield whole_window(video, predictor, image_size, labels)
    else:
        yield from maker.finish()


def check_following(detector: FaceDetector | None, interval_s: float, margin: float) -> None:
    """Check the frame interval in seconds and the margin for faces that are followed and cropped.

    Raises:
        DferDeployError: the margin is not in [0, 2], or the interval is longer than ``clips.tracks.HOLD_S`` although a
            detector is given.
    """
    require(0 <= margin <= MAX_MARGIN, f"the margin around a face is {margin}, expected 0 to {MAX_MARGIN:g}")
    require(
        detector is None or interval_s <= HOLD_S,
        f"the frame interval is {interval_s:g} s, but faces are followed in steps of at most {HOLD_S:g} s; "
        "give a shorter one, or look for no faces",
    )


def whole_window(path: Path, predictor: Predictor, image_size: int, labels: Sequence[str]) -> Window:
    """Answer a video or a folder of frames with one window: 16 frames spread over the whole, as at test time.

    The window's times are 0 and the time until which a video's last frame is shown; NaN for a folder of frames.

    Raises:
        DferDeployError: the input cannot be read, or the predictor raises it.
    """
    start_s = end_s = math.nan
    count = 0

    def sampler(frames: int) -> Indices:
        nonlocal count
        count = frames
        return sample_indices(frames)

    def decoded(video: Path) -> Iterator[DecodedFrame]:
        nonlocal start_s, end_s
        for shown in shown_frames(video):
            start_s, end_s = 0.0, shown.end_s
            yield shown.frame

    # The duration in the header may be missing, estimated, or that of the audio.
    clip = clip_from_path(path, image_size, sampler, decoded)
    answer = predictor.predict(clip[np.newaxis])
    return Window(
        track=WHOLE,
        start_s=start_s,
        end_s=end_s,
        logits=answer.logits[0],
        probabilities=answer.probabilities[0],
        frames=min(count, WINDOW),
        detection=1.0,
        labels=tuple(labels),
    )


class WindowMaker:
    """Joins the faces of frames to windows and calls the model. Its memory is bounded by the faces at one time."""

    def __init__(self, predictor: Predictor, stride: int, labels: Sequence[str]) -> None:
        self._predictor = predictor
        self._stride = stride
        self._labels = tuple(labels)
        self._confirmed = ConfirmedFaces()
        self._tracks: dict[int, _Track] = {}
        self._waiting: list[_Frame | _End] = []

    def add(self, frame: SeenFrame) -> Iterator[Window]:
        """Add the next frame, and yield the windows that are answered by now, which may end some frames earlier."""
        present = {face.track for face in frame.faces}
        for number in [number for number in self._tracks if number not in present]:
            self._end(number)
        for time_s, face in self._confirmed.add(frame):
            track = self._tracks.setdefault(face.track, _Track(face.track))
            self._waiting.append(_Frame(track, time_s, face.score, face.crop))
        if sum(isinstance(item, _Frame) for item in self._waiting) >= WINDOW:
            yield from self._answered()

    def finish(self) -> Iterator[Window]:
        """End all tracks, and yield the remaining windows."""
        for number in list(self._tracks):
            self._end(number)
        yield from self._answered()

    def _end(self, number: int) -> None:
        self._waiting.append(_End(self._tracks.pop(number)))

    def _answered(self) -> Iterator[Window]:
        crops = [item.crop for item in self._waiting if isinstance(item, _Frame)]
        # The encoder treats each frame independently, so frames of several faces and times share a batch.
        pieces = [np.stack(crops[place : place + WINDOW])[np.newaxis] for place in range(0, len(crops), WINDOW)]
        features = iter([feature for piece in pieces for feature in self._predictor.encode(piece)[0]])
        due: list[tuple[_Track, list[_Encoded]]] = []
        for item in self._waiting:
            track = item.track
            if isinstance(item, _Frame):
                track.recent.append(_Encoded(item.time_s, item.score, next(features)))
                track.count += 1
                full = track.count >= WINDOW and (track.count - WINDOW) % self._stride == 0
            else:
                full = track.count > track.answered
            if full:
                track.answered = track.count
                due.append((track, list(track.recent)))
        self._waiting = []
        for place in range(0, len(due), WINDOW):
            yield from self._classified(due[place : place + WINDOW])

    def _classified(self, due: list[tuple[_Track, list[_Encoded]]]) -> Iterator[Window]:
        inputs = [padded([frame.feature for frame in frames]) for _, frames in due]
        answer = self._predictor.classify(np.stack(inputs))
        for (track, frames), logits, probabilities in zip(due, answer.logits, answer.probabilities, strict=True):
            yield Window(
                track=track.number,
                start_s=frames[0].time_s,
                end_s=frames[-1].time_s,
                logits=logits,
                probabilities=probabilities,
                frames=len(frames),
                detection=float(np.mean([frame.score for frame in frames])),
                labels=self._labels,
            )


@dataclass
class _Track:
    number: int
    recent: deque[_Encoded] = field(default_factory=lambda: deque(maxlen=WINDOW))
    count: int = 0
    answered: int = 0


@dataclass(frozen=True)
class _Frame:
    track: _Track
    time_s: float
    score: float
    crop: Clip


@dataclass(frozen=True)
class _End:
    track: _Track


@dataclass(frozen=True)
class _Encoded:
    time_s: float
    score: float
    feature: Float32


@contextlib.contextmanager
def _seen_frames(
    video: Path, image_size: int, interval_s: float, detector: FaceDetector | None, margin: float
) -> Iterator[Iterator[SeenFrame]]:
    """Decode frames in one thread, and detect faces in a second one."""
    with prefetched(timed_frames(video, interval_s), _IMAGES_AHEAD) as frames:
        found = _faces(frames, image_size, detector, margin) if detector else _wholes(frames, image_size)
        with prefetched(found, _CROPS_AHEAD) as ahead:
            yield ahead


def _faces(frames: Iterator[TimedFrame], image_size: int, detector: FaceDetector, margin: float) -> Iterator[SeenFrame]:
    tracker = FaceTracker()
    for frame in frames:
        image = frame.image
        sightings = tracker.update(frame.time_s, detector.detect(image))
        yield SeenFrame(
            frame.time_s,
            tuple(
                Face(
                    sighting.track,
                    face_crop(image, sighting.box, image_size, margin=margin),
                    sighting.score,
                    sighting.detected,
                    sighting.box,
                )
                for sighting in sightings
            ),
        )


def _wholes(frames: Iterator[TimedFrame], image_size: int) -> Iterator[SeenFrame]:
    for frame in frames:
        yield SeenFrame(frame.time_s, (Face(WHOLE, resized(frame.picture, image_size)),))
