"""``dfer-deploy stream``"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import click
from rich.live import Live

from dfer_deploy.answers.in_process_stream import FrameStream, InProcessStream
from dfer_deploy.api.predict_inputs import open_face_detector
from dfer_deploy.clips.faces import DETECTORS
from dfer_deploy.commands.answering import Asked, answering_options
from dfer_deploy.commands.options import frame_interval_option, margin_option
from dfer_deploy.console import stdout, table, warn
from dfer_deploy.errors import WriteError
from dfer_deploy.files import refuse_to_replace_input, refuse_to_write_into_bundle
from dfer_deploy.inference.windows import DEFAULT_FRAME_INTERVAL_S, WHOLE
from dfer_deploy.live.overlay_window import OverlayWindow
from dfer_deploy.live.session import FaceAnswer, LiveSession
from dfer_deploy.live.sources import is_camera, live_frames
from dfer_deploy.live.tally import Tally
from dfer_deploy.live.view import LiveView

_REFRESHES_PER_S = 8
"""How often a second the terminal is updated."""


@dataclass(frozen=True)
class Answering:
    """What answers: a server, or a bundle in this process."""

    name: str
    new_stream: Callable[[], FrameStream]
    image_size: int
    frame_interval_s: float | None


@click.command()
@click.argument("source")
@answering_options
@click.option(
    "--faces",
    type=click.Choice([*DETECTORS, "none"]),
    default=DETECTORS[0],
    show_default=True,
    help="How faces are found; none where the picture is a cropped face.",
)
@margin_option
@frame_interval_option
@click.option("--fast", is_flag=True, help="Play a video file as fast as it is answered.")
@click.option("--window", is_flag=True, help="Also show the picture with the answers in a window.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write every answer to this file, one JSON object a line, and a summary at the end.",
)
def stream(
    source: str,
    asked: Asked,
    faces: str,
    margin: float,
    frame_interval_s: float | None,
    fast: bool,
    window: bool,
    json_file: Path | None,
) -> None:
    """Show the expressions of a live SOURCE: a camera (0, /dev/video0, a name) or a video file.

    Every face is a stream of its own, and each of its frames is encoded once. If the answers take longer than the frame
    interval, older frames are dropped in favour of the newest. If the server restarts, the streams continue.
    """
    if fast and is_camera(source):
        raise click.UsageError(f"--fast plays a file, but {source} is a camera; omit it")
    if json_file:
        refuse_to_replace_input(json_file, [Path(source)])
        if asked.bundle_path:
            refuse_to_write_into_bundle(json_file, asked.bundle_path)
    with ExitStack() as stack:
        detector = None if faces == "none" else open_face_detector(faces)
        answering = _answering(stack, asked)
        interval_s = answering.frame_interval_s if frame_interval_s is None else frame_interval_s
        if interval_s is None:
            interval_s = DEFAULT_FRAME_INTERVAL_S
            warn(f"the trained frame interval is unknown, {interval_s:.3f} s is taken; --frame-interval-s changes it")
        session = stack.enter_context(
            LiveSession(answering.new_stream, answering.image_size, detector, margin=margin, interval_s=interval_s)
        )
        shown = stack.enter_context(OverlayWindow(f"dfer-deploy {source}")) if window else None
        frames = stack.enter_context(live_frames(source, interval_s, fast=fast))
        # The file is opened afterwards, so that a source that cannot be read does not empty it.
        first = list(itertools.islice(frames, 1))
        lines = stack.enter_context(_AnswerFile(json_file)) if json_file else None
        tally = Tally()
        view = LiveView(f"{source}, {answering.name}, {interval_s:.3f} s a frame", tally, lambda: frames.dropped)
        try:
            with (
                contextlib.suppress(KeyboardInterrupt),
                Live(get_renderable=lambda: view, console=stdout, refresh_per_second=_REFRESHES_PER_S, transient=True),
            ):
                for frame in itertools.chain(first, frames):
                    answers = session.answered(frame)
                    tally.add(answers)
                    view.update(frame.time_s, answers)
                    if lines:
                        lines.write("".join(_line(answer) for answer in answers))
                    if shown:
                        shown.show(frame.image, answers)
                        if not shown.is_open:
                            break
        finally:
            _print_summary(source, tally, frames.dropped)
            if lines:
                lines.write(json.dumps({"summary": tally.to_dict(frames.dropped)}) + "\n")


def _answering(stack: ExitStack, asked: Asked) -> Answering:
    if asked.url is not None:
        client = stack.enter_context(asked.open_client())
        return Answering(str(client.address), client.stream, client.image_size, client.frame_interval_s)
    bundle, predictor = asked.open_bundle(stack)
    labels = bundle.spec.prompts.class_names
    return Answering(
        predictor.name,
        lambda: InProcessStream(predictor, labels),
        bundle.spec.clip.vision.image_size,
        bundle.manifest.frame_interval_s,
    )


class _AnswerFile:
    """The file of the answers. Every answer is written at once, so that another program can follow the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            self._file = path.open("wb", buffering=0)

    def write(self, text: str) -> None:
        """Append a text.

        Raises:
            DferDeployError: the file cannot be written, for example because the disk is full.
        """
        with self._told():
            self._file.write(text.encode())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the reader has closed the pipe, which is not an error
            raise
        except OSError as error:
            raise WriteError(f"cannot write {self._path} ({error.strerror or error}); choose another place") from error

    def __enter__(self) -> _AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _line(face: FaceAnswer) -> str:
    answer = face.answer
    if answer is None:
        return ""
    content = {
        "time_s": round(face.time_s, 6),
        "start_s": round(face.start_s, 6),
        "track": face.track,
        "expression": answer.expression,
        "confidence": answer.confidence,
        "probabilities": dict(answer.probabilities),
        "logits": dict(answer.logits),
        "frames": answer.frames,
        "resumed": answer.resumed,
        "latency_s": round(face.latency_s, 6),
        "box": None if face.box is None else [face.box.left, face.box.top, face.box.right, face.box.bottom],
    }
    return json.dumps(content) + "\n"


def _print_summary(source: str, tally: Tally, dropped: int) -> None:
    if not tally.frames:
        return
    rows: Sequence[Sequence[object]] = [
        (
            "whole picture" if number == WHOLE else f"face {number}",
            f"{track.start_s:.1f}",
            f"{track.end_s:.1f}",
            track.expressions.total(),
            track.shares(3),
        )
        for number, track in tally.tracks.items()
    ]
    if rows:
        table(f"{source}", ("who", "from s", "to s", "answers", "expressions"), rows)
    else:
        stdout.print("no face was found")
    latency = f", latency {tally.latency_ms(50):.0f} ms (95 %: {tally.latency_ms(95):.0f} ms)" if tally.answers else ""
    resumed = f", resumed {tally.resumed} ×" if tally.resumed else ""
    stdout.print(f"{tally.frames} frames in {tally.seconds:.1f} s, {dropped} dropped{latency}{resumed}")
