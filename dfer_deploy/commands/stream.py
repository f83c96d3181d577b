"""``dfer-deploy stream``"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.live import Live

from dfer_deploy.bundle import open_bundle
from dfer_deploy.clips.faces import DETECTORS, open_detector
from dfer_deploy.clips.timed import LARGEST_INTERVAL_S, SMALLEST_INTERVAL_S
from dfer_deploy.commands.options import margin_option
from dfer_deploy.commands.runtimes import host_code_option
from dfer_deploy.console import stdout, table, warn
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import refuse_to_replace_input
from dfer_deploy.live.session import FaceAnswer, LiveSession
from dfer_deploy.live.sources import is_camera, live_frames
from dfer_deploy.live.tally import Tally
from dfer_deploy.live.view import LiveView
from dfer_deploy.live.window import OverlayWindow
from dfer_deploy.runtimes.available import RUNTIMES, Runtime, open_predictor, usual_runtime
from dfer_deploy.streaming import FrameStream, InProcessStream
from dfer_deploy.windows import DEFAULT_FRAME_INTERVAL_S, WHOLE

_RETRIES = 1000
"""The deadline is what ends the waiting for a server."""

_REFRESHES_PER_S = 8


@dataclass(frozen=True)
class Answering:
    """Who answers: a server, or a bundle in this process."""

    name: str
    new_stream: Callable[[], FrameStream]
    image_size: int
    frame_interval_s: float | None


@click.command()
@click.argument("source")
@click.option("--url", help="Ask a server: grpc://HOST:PORT or http://HOST:PORT.")
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Answer in this process.")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="Of this process, with --bundle.  [default: the fastest]")
@host_code_option
@click.option("--model", default="dfer", show_default=True, help="The ensemble's name, with --url.")
@click.option(
    "--timeout-s",
    type=float,
    default=60.0,
    show_default=True,
    help="How long one answer may take, with --url; so long a server may be away.",
)
@click.option(
    "--faces",
    type=click.Choice([*DETECTORS, "none"]),
    default=DETECTORS[0],
    show_default=True,
    help="How faces are found; none where the picture is a cropped face.",
)
@margin_option
@click.option(
    "--frame-interval-s",
    type=click.FloatRange(SMALLEST_INTERVAL_S, LARGEST_INTERVAL_S),
    help="Between two frames of a window.  [default: as in training, else 1/6]",
)
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
    url: str | None,
    bundle_path: Path | None,
    runtime: Runtime | None,
    allow_host_code: bool,
    model: str,
    timeout_s: float,
    faces: str,
    margin: float,
    frame_interval_s: float | None,
    fast: bool,
    window: bool,
    json_file: Path | None,
) -> None:
    """Show the expressions of a live SOURCE: a camera (0, /dev/video0, a name) or a video file.

    Every face is a stream of its own, and every frame of it is encoded once. If the answers take longer than the frame
    interval, the newest frame wins. A server that is started again is found again, and the streams go on as they were.
    """
    if (bundle_path is None) == (url is None):
        raise click.UsageError("give either --bundle BUNDLE or --url URL")
    if url and runtime:
        raise click.UsageError("--runtime chooses what runs in this process, --url asks a server; choose one")
    if fast and is_camera(source):
        raise click.UsageError(f"--fast plays a file, but {source} is a camera; leave it away")
    if json_file:
        refuse_to_replace_input(json_file, [Path(source)])
    with ExitStack() as stack:
        detector = None if faces == "none" else open_detector(faces)
        if url is not None:
            answering = _server(stack, url, model, timeout_s)
        else:
            assert bundle_path is not None  # noqa: S101 - checked above, for mypy
            answering = _in_process(stack, bundle_path, runtime, allow_host_code=allow_host_code)
        interval_s = answering.frame_interval_s if frame_interval_s is None else frame_interval_s
        if interval_s is None:
            interval_s = DEFAULT_FRAME_INTERVAL_S
            warn(f"the trained frame interval is unknown, {interval_s:.3f} s is taken; --frame-interval-s changes it")
        session = stack.enter_context(
            LiveSession(answering.new_stream, answering.image_size, detector, margin=margin, interval_s=interval_s)
        )
        shown = stack.enter_context(OverlayWindow(f"dfer-deploy {source}")) if window else None
        frames = stack.enter_context(live_frames(source, interval_s, fast=fast))
        # A source that cannot be read empties no file.
        first = list(itertools.islice(frames, 1))
        lines = stack.enter_context(_opened(json_file)) if json_file else None
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
                        lines.flush()
                    if shown:
                        shown.show(frame.image, answers)
                        if not shown.is_open:
                            break
        finally:
            _print_summary(source, tally, frames.dropped)
            if lines:
                lines.write(json.dumps({"summary": tally.to_dict(frames.dropped)}) + "\n")


def _server(stack: ExitStack, url: str, model: str, timeout_s: float) -> Answering:
    from dfer_deploy.client import Client

    client = stack.enter_context(Client(url, model, deadline_s=timeout_s, retries=_RETRIES))
    return Answering(str(client.address), client.stream, client.image_size, client.frame_interval_s)


def _in_process(stack: ExitStack, path: Path, runtime: Runtime | None, *, allow_host_code: bool) -> Answering:
    bundle = open_bundle(path)
    runtime = runtime or usual_runtime(bundle, host_code_allowed=allow_host_code)
    predictor = stack.enter_context(open_predictor(runtime, bundle, host_code_allowed=allow_host_code))
    labels = bundle.spec.prompts.class_names
    return Answering(
        predictor.name,
        lambda: InProcessStream(predictor, labels),
        bundle.spec.clip.vision.image_size,
        bundle.manifest.frame_interval_s,
    )


def _opened(path: Path) -> Any:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise DferDeployError(f"cannot write {path} ({error.strerror or error}); choose another place") from error


def _line(face: FaceAnswer) -> str:
    answer = face.answer
    if answer is None:
        return ""
    content = {
        "time_s": round(face.time_s, 6),
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
