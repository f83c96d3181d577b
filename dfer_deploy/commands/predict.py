"""``dfer-deploy predict``"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from dfer_deploy.clips.faces import DETECTORS, FaceDetector
from dfer_deploy.clips.timed import duration_s
from dfer_deploy.commands.answering import Asked, answering_options, open_face_detector
from dfer_deploy.commands.options import frame_interval_option, json_option, margin_option
from dfer_deploy.commands.prediction_output import OutputFiles, one_of, print_answers, write_answers
from dfer_deploy.console import printable, progress_bar, stderr, warn
from dfer_deploy.drawing.annotated_video import write_annotated
from dfer_deploy.drawing.contact_sheet import write_contact_sheet
from dfer_deploy.drawing.crop_sample import CropSample
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.window_files import shown
from dfer_deploy.inference.windows import (
    DEFAULT_FRAME_INTERVAL_S,
    DEFAULT_STRIDE,
    ConfirmedFaces,
    SeenFrame,
    whole_window,
    windows_of_video,
)
from dfer_deploy.runtimes.predictor import Predictor

_FILE = click.Path(path_type=Path, dir_okay=False)
_LARGEST_STRIDE = 1_000_000
_LONGEST_NAME = 30

_VIDEO_SUFFIXES = {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


@dataclass(frozen=True)
class _Model:
    """Who answers, and what must be known of it."""

    predictor: Predictor
    labels: tuple[str, ...]
    image_size: int
    frame_interval_s: float | None


@dataclass(frozen=True)
class _Windows:
    """How a video is cut into windows (``windows.windows_of_video``)."""

    interval_s: float
    stride: int
    detector: FaceDetector | None
    margin: float


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT…")
@answering_options
@click.option("--whole", is_flag=True, help="One answer for each INPUT, from 16 frames spread over the whole of it.")
@click.option(
    "--faces",
    type=click.Choice([*DETECTORS, "none"]),
    help="What finds the faces; none where the picture is one.  [default: centerface for videos, none for folders and "
    "with --whole]",
)
@margin_option
@frame_interval_option
@click.option(
    "--stride",
    type=click.IntRange(1, _LARGEST_STRIDE),
    default=DEFAULT_STRIDE,
    show_default=True,
    help="Frames from one window to the next.",
)
@click.option("--csv", "csv_file", type=_FILE, help="Also write a line for every window to this file.")
@click.option("--timeline", type=_FILE, help="Draw the probabilities over time (PNG).")
@click.option("--crops", type=_FILE, help="Draw what the model saw (PNG).")
@click.option("--video", type=_FILE, help="Write the video with boxes and answers on it (MP4).")
@json_option
@click.pass_context
def predict(
    ctx: click.Context,
    inputs: tuple[Path, ...],
    asked: Asked,
    whole: bool,
    faces: Literal["centerface", "none"] | None,
    margin: float,
    frame_interval_s: float | None,
    stride: int,
    csv_file: Path | None,
    timeline: Path | None,
    crops: Path | None,
    video: Path | None,
    json_file: Path | None,
) -> None:
    """Print the expressions in every INPUT, a video file or a folder of frames.

    In a video every face is followed, and windows of 16 frames of it are answered over time. A folder of frames, one
    cropped face, is one clip: 16 frames spread over the whole of it.

    With several INPUTs, --timeline, --crops and --video write one file for each: out.png becomes out-1-NAME.png,
    out-2-NAME.png and so on, in the order of the INPUTs.
    """
    if whole and (faces == "centerface" or timeline or crops or video):
        raise click.UsageError(
            "--whole gives one answer without faces and times; leave it away with --faces centerface, --timeline, "
            "--crops and --video"
        )
    files = OutputFiles(json_file, csv_file, timeline, crops, video)
    files.check(inputs, asked.bundle_path)
    videos = {number for number, path in enumerate(inputs) if not whole and _kind(path) == "file"}
    detector = open_face_detector(faces or DETECTORS[0]) if videos and faces != "none" else None
    failures: list[str] = []
    answered = 0
    with ExitStack() as stack:
        model = _open_model(stack, asked)
        known_s = frame_interval_s or model.frame_interval_s
        how = _Windows(known_s or DEFAULT_FRAME_INTERVAL_S, stride, detector, margin)
        if videos and known_s is None:
            stderr.print(
                f"frames {how.interval_s:.3f} s apart, as in DFEW, since it is not known how far apart those of the "
                "training clips were (--frame-interval-s)"
            )
        recording = Recording(model.labels)
        with _positions(inputs, videos, passes=2 if video else 1) as position:
            for number, path in enumerate(inputs):
                try:
                    if number in videos:
                        seen = _answer(number, path, model, how, files, recording, position)
                    else:
                        _check_folder(path, times_wanted=bool(faces == "centerface" or timeline or crops or video))
                        recording.add_window(
                            number, whole_window(path, model.predictor, model.image_size, model.labels)
                        )
                except DferDeployError as error:
                    recording.forget(number)
                    failures.append(str(error))
                    continue
                answered += 1
                if number in videos:
                    try:
                        _draw(number, inputs, how, files, recording, position, seen)
                    except DferDeployError as error:
                        failures.append(str(error))
        failures = [failure.encode(errors="replace").decode() for failure in failures]
        about: dict[str, object] = {"answered_by": model.predictor.name, "failures": failures}
        if videos:
            about["frame_interval_s"] = how.interval_s
        try:
            if answered:
                write_answers(files, recording, inputs, about)
        except DferDeployError as error:
            failures.append(str(error))
        try:
            print_answers(model.predictor.name, recording, inputs)
        finally:
            for failure in failures:
                click.echo(f"Error: {printable(failure)}", err=True)
            for file in (csv_file, json_file):
                if file and not answered:
                    warn(f"{shown(file)} was not written, since there is no answer to any INPUT")
    if failures:
        ctx.exit(ExitCode.WRONG_INPUT)


@dataclass
class _Seen:
    """What is known of a video when it is answered: the crops to show, and when it ends."""

    sample: CropSample
    last_s: float = 0.0


def _answer(
    number: int,
    path: Path,
    model: _Model,
    how: _Windows,
    files: OutputFiles,
    recording: Recording,
    position: Callable[[int, int, float], None],
) -> _Seen:
    """Answers one video over time, and keeps what is to be drawn."""
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
    """Draws what was asked for of one video; where there was no face, the video alone, without boxes."""
    path = inputs[number]
    timeline, crops, video = (
        one_of(file, inputs, number) if file else None for file in (files.timeline, files.crops, files.video)
    )
    if recording.count(number) == 0:
        warn(f"no face was found in {shown(path)}, so there is no answer; for a cropped face use --faces none")
        for file in (timeline, crops):
            if file:
                warn(f"{shown(file)} was not written, since no face was found in {shown(path)}")
        timeline = crops = None
    if timeline:
        from dfer_deploy.drawing.timeline import write_timeline

        # A header may state more than there is; the next frame would be one interval later.
        end_s = min(max(_length_s(path) or math.inf, seen.last_s), seen.last_s + how.interval_s)
        write_timeline(timeline, recording, number, shown(Path(path.name)), interval_s=how.interval_s, end_s=end_s)
    if crops:
        write_contact_sheet(crops, seen.sample.rows(), seen.sample.tracks)
    if video:
        write_annotated(video, path, recording, number, how.interval_s, lambda time_s: position(number, 1, time_s))


def _check_folder(path: Path, *, times_wanted: bool) -> None:
    """Refuses a folder of frames that was meant otherwise; what is no folder is told by who reads it."""
    if _kind(path) != "folder":
        return
    if times_wanted:
        raise DferDeployError(
            f"{path} is a folder of frames, which has no times; give a video, or leave --faces, --timeline, --crops "
            "and --video away"
        )
    with contextlib.suppress(OSError):
        names = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _VIDEO_SUFFIXES)
        if names:
            raise DferDeployError(
                f"{path} is a folder with videos ({names[0]}{', …' if len(names) > 1 else ''}), expected one with the "
                "frames of one clip and nothing else; give the videos themselves"
            )


def _open_model(stack: ExitStack, asked: Asked) -> _Model:
    if asked.url is None:
        bundle, predictor = asked.open_bundle(stack)
        spec = bundle.spec
        return _Model(
            predictor, spec.prompts.class_names, spec.clip.vision.image_size, bundle.manifest.frame_interval_s
        )
    from dfer_deploy.client.blocking import ServedPredictor

    client = asked.open_client()
    served = stack.enter_context(ServedPredictor(client))
    return _Model(served, client.labels, client.image_size, client.frame_interval_s)


@contextlib.contextmanager
def _positions(inputs: Sequence[Path], videos: set[int], passes: int) -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar over the seconds of all videos. Yields what is told input, pass over it, and time in it."""
    lengths = [_length_s(path) if number in videos else 0.0 for number, path in enumerate(inputs)]
    with progress_bar(counts=False) as bar:
        task = bar.add_task("predict", total=sum(lengths) * passes or None)

        def position(number: int, turn: int, time_s: float) -> None:
            before = sum(lengths[:number]) * passes + lengths[number] * turn
            bar.update(task, description=inputs[number].name[:_LONGEST_NAME], completed=before + time_s)

        yield position


def _length_s(video: Path) -> float:
    """The duration of a video; 0 where it is not stated or not readable, which is told when its turn comes."""
    try:
        return duration_s(video) or 0.0
    except DferDeployError:
        return 0.0


def _kind(path: Path) -> Literal["file", "folder", "neither"]:
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else "neither"
    except OSError:  # a name that is too long, no permission: told when its turn comes
        return "neither"
