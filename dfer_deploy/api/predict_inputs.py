"""Answer videos and folders of frames, and draw the requested outputs. An input that fails does not stop the others."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dfer_deploy.api.output_files import OutputFiles, one_of
from dfer_deploy.clips.faces import DEFAULT_MARGIN, DETECTORS, MAX_MARGIN, FaceDetector, open_detector
from dfer_deploy.clips.timed import duration_s
from dfer_deploy.console import progress_bar, stderr, warn
from dfer_deploy.drawing.annotated_video import write_annotated
from dfer_deploy.drawing.contact_sheet import write_contact_sheet
from dfer_deploy.drawing.crop_sample import CropSample
from dfer_deploy.errors import ClipError, DferDeployError, MissingExtraError, spelled
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.window_files import shown, write_csv, write_results
from dfer_deploy.inference.windows import (
    DEFAULT_FRAME_INTERVAL_S,
    DEFAULT_STRIDE,
    ConfirmedFaces,
    SeenFrame,
    whole_window,
    windows_of_video,
)
from dfer_deploy.plain_data import check_fields
from dfer_deploy.runtimes.predictor import Predictor
from dfer_deploy.specs import require

_MAX_NAME = 30
"""Longest file name beside the progress bar, in characters, so that the bar fits a terminal."""

_VIDEO_SUFFIXES = {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
"""Suffixes of videos. A folder that contains such files was given by mistake."""


@dataclass(frozen=True)
class AnsweringModel:
    """The model that answers, with the properties that its caller needs."""

    predictor: Predictor
    labels: tuple[str, ...]
    image_size: int
    frame_interval_s: float | None


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction, named like the options of ``dfer-deploy predict``.

    Attributes:
        whole: give one answer for each input, from 16 frames spread over all of it.
        faces: the face detector; ``none`` if the picture is a cropped face; None for ``centerface`` in videos.
        margin: margin around each face, as a share of its longer side.
        frame_interval_s: seconds between two frames of a window; None for the interval of the training clips, if known.
        stride: number of frames from one window to the next.
    """

    whole: bool = False
    faces: Literal["centerface", "none"] | None = None
    margin: float = DEFAULT_MARGIN
    frame_interval_s: float | None = None
    stride: int = DEFAULT_STRIDE

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.stride >= 1, f"the stride is {self.stride}, expected at least 1")
        require(0 <= self.margin <= MAX_MARGIN, f"the margin is {self.margin}, expected 0 to {MAX_MARGIN:g}")

    def check(self, files: OutputFiles) -> None:
        """Refuse options that contradict each other.

        Raises:
            DferDeployError: ``whole`` is combined with faces or with outputs that need times.
        """
        require(
            not (self.whole and (self.faces == "centerface" or files.drawn)),
            f"{spelled('whole')} gives one answer without faces and times; omit it with "
            f"{spelled('faces', 'centerface')}, {spelled('timeline')}, {spelled('crops')} and {spelled('video')}",
        )


@dataclass
class PredictResult:
    """The outcome of a prediction.

    Attributes:
        recording: the windows of every input, by the input's index in the list.
        failures: one sentence for every input without an answer, and for every file that could not be written.
        answered: number of inputs with an answer.
    """

    recording: Recording
    failures: list[str] = field(default_factory=list)
    answered: int = 0


@dataclass(frozen=True)
class _Windows:
    """How a video is cut into windows; see ``windows.windows_of_video``."""

    interval_s: float
    stride: int
    detector: FaceDetector | None
    margin: float


def predict_inputs(
    model: AnsweringModel, inputs: Sequence[Path], options: PredictOptions, files: OutputFiles
) -> PredictResult:
    """Answer every input, and write the requested files.

    Args:
        model: the model that answers.
        inputs: video files, and folders that each hold the frames of one clip.
        options: how to answer.
        files: the output files.

    Raises:
        DferDeployError: the face detector's packages are not installed.
    """
    videos = {number for number, path in enumerate(inputs) if not options.whole and _kind(path) == "file"}
    detector = open_face_detector(options.faces or DETECTORS[0]) if videos and options.faces != "none" else None
    known_s = options.frame_interval_s or model.frame_interval_s
    how = _Windows(known_s or DEFAULT_FRAME_INTERVAL_S, options.stride, detector, options.margin)
    if videos and known_s is None:
        stderr.print(
            f"frames {how.interval_s:.3f} s apart, as in DFEW, since it is not known how far apart those of the "
            f"training clips were ({spelled('frame_interval_s')})"
        )
    result = PredictResult(Recording(model.labels))
    with _positions(inputs, videos, passes=2 if files.video else 1) as position:
        for number, path in enumerate(inputs):
            try:
                if number in videos:
                    seen = _answer(number, path, model, how, files, result.recording, position)
                else:
                    _check_folder(path, times_wanted=options.faces == "centerface" or files.drawn)
                    window = whole_window(path, model.predictor, model.image_size, model.labels)
                    result.recording.add_window(number, window)
            except DferDeployError as error:
                result.recording.forget(number)
                result.failures.append(str(error))
                continue
            result.answered += 1
            if number in videos:
                try:
                    _draw(number, inputs, how, files, result.recording, position, seen)
                except DferDeployError as error:
                    result.failures.append(str(error))
    result.failures = [failure.encode(errors="replace").decode() for failure in result.failures]
    about: dict[str, object] = {"answered_by": model.predictor.name, "failures": result.failures}
    if videos:
        about["frame_interval_s"] = how.interval_s
    if result.answered:
        _write(files, inputs, result, about)
    return result


def _write(files: OutputFiles, inputs: Sequence[Path], result: PredictResult, about: dict[str, object]) -> None:
    try:
        if files.csv:
            write_csv(files.csv, result.recording, inputs)
        if files.json:
            write_results(files.json, result.recording, inputs, about)
    except DferDeployError as error:
        result.failures.append(str(error))


def open_face_detector(name: str) -> FaceDetector:
    """Open a face detector, with an error that names the way to work without one.

    Raises:
        DferDeployError: its packages are not installed.
    """
    try:
        return open_detector(name)
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{error}, or add {spelled('faces', 'none')} if the picture is one cropped face"
        ) from error


@dataclass
class _Seen:
    """What is known about a video when it is answered: the crops to show, and its end."""

    sample: CropSample
    last_s: float = 0.0


def _answer(
    number: int,
    path: Path,
    model: AnsweringModel,
    how: _Windows,
    files: OutputFiles,
    recording: Recording,
    position: Callable[[int, int, float], None],
) -> _Seen:
    """Answer one video over time, and keep what is to be drawn."""
    known, confirmed = _Seen(CropSample()), ConfirmedFaces()

    def seen(frame: SeenFrame) -> None:
        position(number, 0, frame.time_s)
        known.last_s = frame.time_s
        for time_s, face in confirmed.add(frame):
            if files.video:
                recording.add_box(number, time_s, face)
            if files.crops:
                known.sample.add(time_s, face)

    windows = windows_of_video(
        path,
        model.predictor,
        model.image_size,
        labels=model.labels,
        interval_s=how.interval_s,
        stride=how.stride,
        detector=how.detector,
        margin=how.margin,
        seen=seen,
    )
    with contextlib.closing(windows):
        for window in windows:
            recording.add_window(number, window)
    return known


def _draw(
    number: int,
    inputs: Sequence[Path],
    how: _Windows,
    files: OutputFiles,
    recording: Recording,
    position: Callable[[int, int, float], None],
    seen: _Seen,
) -> None:
    """Draw the requested outputs of one video. If it shows no face, only the video is written, without boxes."""
    path = inputs[number]
    timeline, crops, video = (
        one_of(file, inputs, number) if file else None for file in (files.timeline, files.crops, files.video)
    )
    if recording.count(number) == 0:
        warn(
            f"no face was found in {shown(path)}, so there is no answer; for a cropped face "
            f"use {spelled('faces', 'none')}"
        )
        for file in (timeline, crops):
            if file:
                warn(f"{shown(file)} was not written, since no face was found in {shown(path)}")
        timeline = crops = None
    if timeline:
        from dfer_deploy.drawing.timeline import write_timeline

        # A header may state a longer duration than the frames have. The next frame would be one interval later.
        end_s = min(max(_length_s(path) or math.inf, seen.last_s), seen.last_s + how.interval_s)
        write_timeline(timeline, recording, number, shown(Path(path.name)), interval_s=how.interval_s, end_s=end_s)
    if crops:
        write_contact_sheet(crops, seen.sample.rows(), seen.sample.tracks)
    if video:
        write_annotated(video, path, recording, number, how.interval_s, lambda time_s: position(number, 1, time_s))


def _check_folder(path: Path, *, times_wanted: bool) -> None:
    """Refuse a folder of frames with options that do not fit it. Other inputs are checked when they are read."""
    if _kind(path) != "folder":
        return
    if times_wanted:
        raise ClipError(
            f"{path} is a folder of frames, which has no times; give a video, or omit {spelled('faces')}, "
            f"{spelled('timeline')}, {spelled('crops')} and {spelled('video')}"
        )
    with contextlib.suppress(OSError):
        names = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _VIDEO_SUFFIXES)
        if names:
            raise ClipError(
                f"{path} is a folder with videos ({names[0]}{', …' if len(names) > 1 else ''}), expected one with the "
                "frames of one clip and nothing else; give the videos themselves"
            )


@contextlib.contextmanager
def _positions(inputs: Sequence[Path], videos: set[int], passes: int) -> Iterator[Callable[[int, int, float], None]]:
    """Show a progress bar over the seconds of all videos. Yield a function of input, pass and time in seconds."""
    lengths = [_length_s(path) if number in videos else 0.0 for number, path in enumerate(inputs)]
    with progress_bar(counts=False) as bar:
        task = bar.add_task("predict", total=sum(lengths) * passes or None)

        def position(number: int, turn: int, time_s: float) -> None:
            before = sum(lengths[:number]) * passes + lengths[number] * turn
            bar.update(task, description=inputs[number].name[:_MAX_NAME], completed=before + time_s)

        yield position


def _length_s(video: Path) -> float:
    """Return the duration of a video in seconds, or 0 if it is unknown. Errors are reported when the video is read."""
    try:
        return duration_s(video) or 0.0
    except DferDeployError:
        return 0.0


def _kind(path: Path) -> Literal["file", "folder", "neither"]:
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else "neither"
    except OSError:  # a name that is too long, or no permission: reported when the video is read
        return "neither"
