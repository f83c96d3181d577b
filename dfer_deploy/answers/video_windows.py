"""The windows of a video, one by one as they are answered, or as a table."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from dfer_deploy.answers.tables import dataframe
from dfer_deploy.clips.faces import DEFAULT_MARGIN, FaceDetector, open_detector
from dfer_deploy.clips.timed import check_interval
from dfer_deploy.drawing.timeline import timeline_png
from dfer_deploy.errors import ClipError, MissingExtraError, extras_named
from dfer_deploy.files import atomic_file
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.windows import DEFAULT_FRAME_INTERVAL_S, DEFAULT_STRIDE, Window, windows_of_video
from dfer_deploy.plain_data import checked_arguments
from dfer_deploy.runtimes.predictor import Predictor

if TYPE_CHECKING:
    from pandas import DataFrame

Faces = FaceDetector | Literal["centerface", "none"]
"""The face detector of a video, or its name; ``"none"`` if the picture is a cropped face."""


class VideoWindows(Iterator[Window]):
    """An iterator over the windows of a video. The video is read during the iteration.

    The conversions and the picture are of all windows: they read the video to its end, and may be called in any order.
    The windows are kept for them, some MB for hours of a video.
    """

    def __init__(
        self, windows: Generator[Window, None, None], labels: Sequence[str], title: str, *, interval_s: float
    ) -> None:
        """
        Args:
            windows: the windows, as the video is read.
            labels: C class names, in the order of the logits.
            title: title of the picture.
            interval_s: seconds between two frames of a window.
        """
        self._windows, self._labels, self._title, self._interval_s = windows, labels, title, interval_s
        self._answered: list[Window] = []

    def __next__(self) -> Window:
        self._answered.append(next(self._windows))
        return self._answered[-1]

    def close(self) -> None:
        """Stop reading the video. May be called more than once."""
        self._windows.close()

    def to_dict(self) -> list[dict[str, Any]]:
        """Convert the windows to plain data; see ``Window.to_dict``."""
        return [window.to_dict() for window in self._all()]

    def to_pandas(self) -> DataFrame:
        """Convert the windows to a table.

        The columns are track, start_s, end_s, frames, detection, expression, confidence, and the probability of each
        class.

        Raises:
            DferDeployError: pandas is not installed, the video cannot be read to its end, or a prediction fails.
        """
        return dataframe(self.to_dict())

    @extras_named("drawing a video's answers")
    def plot(self, path: Path | str | None = None) -> Image.Image:
        """Draw the probabilities of the classes over time, with a panel for each track.

        Args:
            path: PNG file to write, atomically; None to write none.

        Returns:
            The picture.

        Raises:
            MissingExtraError: matplotlib is not installed (extra ``[report]``).
            ClipError: no face was found, so there is nothing to draw.
            DferDeployError: the file cannot be written, the video cannot be read to its end, or a prediction fails.
        """
        recording, end_s = Recording(self._labels), 0.0
        for window in self._all():
            recording.add_window(0, window)
            end_s = max(end_s, window.end_s + self._interval_s)  # the last frame is shown until the next one's time
        png = timeline_png(recording, 0, self._title, interval_s=self._interval_s, end_s=end_s)
        if png is None:
            raise ClipError(f"no face was found in {self._title}, so there is nothing to draw")
        if path is not None:
            with atomic_file(Path(path)) as temporary:
                temporary.write_bytes(png)
        return Image.open(io.BytesIO(png)).convert("RGB")

    def _all(self) -> list[Window]:
        for _ in self:
            pass
        return self._answered


class AnswersVideos(ABC):
    """A model that answers videos over time. ``Client`` and a loaded bundle are such models."""

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
        """Seconds between the frames of a training clip; None if unknown."""

    @property
    @abstractmethod
    def predictor(self) -> Predictor:
        """The predictor that answers batches of frames."""

    @checked_arguments
    def predict_video(
        self,
        path: str | Path,
        *,
        interval_s: float | None = None,
        stride: int = DEFAULT_STRIDE,
        faces: Faces = "centerface",
        margin: float = DEFAULT_MARGIN,
    ) -> VideoWindows:
        """Predict the expressions of a video over time, in windows of 16 frames. Each frame is encoded once.

        Args:
            path: a video file.
            interval_s: seconds between the frames of a window, 0.01 to 60, at most 0.75 with faces. By default that of
                the training clips, or 1/6 s if it is unknown.
            stride: frames from one window to the next, at least 1.
            faces: the face detector: ``"centerface"`` (extra ``[faces]``), or an object with its interface. ``"none"``
                if the picture is a cropped face.
            margin: margin added around a face on each side, as a share of its box's longer side.

        Returns:
            An iterator over the windows. The video is read during the iteration.

        Raises:
            DferDeployError: the detector is unknown, or its extra is not installed. While iterating: a number is out of
                range, the video cannot be read, or a prediction fails.
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
        return VideoWindows(windows, self.labels, Path(path).name, interval_s=interval_s)


def _detector(faces: Faces) -> FaceDetector | None:
    if not isinstance(faces, str):
        return faces
    try:
        return None if faces == "none" else open_detector(faces)
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}; or give faces='none' if the video shows one cropped face") from error
