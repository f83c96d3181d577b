"""The windows of a video as they are answered, and all of them as a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfer_deploy.clips.faces import DEFAULT_MARGIN, DETECTORS, FaceDetector, open_detector
from dfer_deploy.clips.timed import check_interval
from dfer_deploy.errors import ClipError, DferDeployError, SettingError
from dfer_deploy.inference.tables import dataframe
from dfer_deploy.inference.windows import DEFAULT_FRAME_INTERVAL_S, DEFAULT_STRIDE, Window, windows_of_video
from dfer_deploy.runtimes.predictor import Predictor

if TYPE_CHECKING:
    from pandas import DataFrame

Faces = FaceDetector | Literal["centerface", "none"]
"""What finds the faces of a video; ``none`` where the picture is a cropped face."""


class VideoWindows(Iterator[Window]):
    """An iterator over the windows of a video, which is read while it is iterated."""

    def __init__(self, windows: Generator[Window, None, None]) -> None:
        self._windows = windows

    def __next__(self) -> Window:
        return next(self._windows)

    def close(self) -> None:
        """Stop reading the video. Can be repeated."""
        self._windows.close()

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the remaining windows as plain data; see ``Window.to_dict``."""
        return [window.to_dict() for window in self]

    def to_pandas(self) -> DataFrame:
        """Return the remaining windows as a table.

        The columns are track, start_s, end_s, frames, detection, expression, confidence, and a probability a class.

        Raises:
            DferDeployError: pandas is not installed, or the video or the answers fail on the way.
        """
        return dataframe(self.to_dict())


class AnswersVideos(ABC):
    """A model that answers videos over time: what ``Client`` and a loaded bundle have in common."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The class names in the order of the logits."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """S, height and width in pixels of the frames that the model takes."""

    @property
    @abstractmethod
    def frame_interval_s(self) -> float | None:
        """Seconds between the 16 frames that the model saw of a training clip; None where that is unknown."""

    @property
    @abstractmethod
    def predictor(self) -> Predictor:
        """What answers batches of frames."""

    def predict_video(
        self,
        path: str | Path,
        *,
        interval_s: float | None = None,
        stride: int = DEFAULT_STRIDE,
        faces: Faces = "centerface",
        margin: float = DEFAULT_MARGIN,
    ) -> VideoWindows:
        """Answer a video over time, in windows of 16 frames; each frame is encoded once.

        Args:
            path: a video file.
            interval_s: seconds between the frames of a window, 0.01 to 60, with faces at most 0.75; None for those of
                the training, as far as they are known.
            stride: frames from one window to the next, at least 1.
            faces: how faces are found, ``"centerface"`` (extra ``[faces]``) or a detector of your own; ``"none"`` where
                the picture is a cropped face.
            margin: around the face, as a share of it.

        Raises:
            DferDeployError: the detector is unknown or its extra is missing. From the iterator: the video cannot be
                read, or there is no answer.
        """
        if interval_s is None:
            interval_s = self.frame_interval_s or DEFAULT_FRAME_INTERVAL_S
        check_interval(interval_s)
        if Path(path).is_dir():
            raise ClipError(f"{path} is a folder, expected a video; give predict its images, in the order of time")
        windows = windows_of_video(
            Path(path),
            self.predictor,
            self.image_size,
            labels=self.labels,
            interval_s=interval_s,
            stride=stride,
            detector=_detector(faces),
            margin=margin,
        )
        return VideoWindows(windows)


def _detector(faces: Faces) -> FaceDetector | None:
    if not isinstance(faces, str):
        return faces
    if faces not in (*DETECTORS, "none"):
        raise SettingError(f"faces is {faces!r}, expected {', '.join(map(repr, DETECTORS))}, 'none' or a detector")
    try:
        return None if faces == "none" else open_detector(faces)
    except DferDeployError as error:
        raise SettingError(f"{error}; or give faces='none' if the video shows one cropped face") from error
