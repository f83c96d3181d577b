"""``dfer-deploy predict``"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click

from dfer_deploy.api.output_files import OutputFiles
from dfer_deploy.api.predict_inputs import AnsweringModel, PredictOptions, predict_inputs
from dfer_deploy.clips.faces import DETECTORS
from dfer_deploy.commands.answering import Asked, answering_options
from dfer_deploy.commands.options import frame_interval_option, json_option, margin_option
from dfer_deploy.commands.prediction_output import print_answers
from dfer_deploy.console import printable, warn
from dfer_deploy.errors import ExitCode
from dfer_deploy.inference.window_files import shown
from dfer_deploy.inference.windows import DEFAULT_STRIDE

_FILE = click.Path(path_type=Path, dir_okay=False)
_MAX_STRIDE = 1_000_000
"""Largest stride in frames. It only catches mistakes: a larger one would skip over hours of video."""


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
    type=click.IntRange(1, _MAX_STRIDE),
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

    In a video, every face is followed, and its windows of 16 frames are answered over time. A folder holds the frames
    of one cropped face and is one clip: 16 frames spread over all of it.

    With several INPUTs, --timeline, --crops and --video write one file for each INPUT: out.png becomes out-1-NAME.png,
    out-2-NAME.png and so on, in the order of the INPUTs.
    """
    options = PredictOptions(whole, faces, margin, frame_interval_s, stride)
    files = OutputFiles(json_file, csv_file, timeline, crops, video)
    options.check(files)
    files.check(inputs, asked.bundle_path)
    with ExitStack() as stack:
        model = _open_model(stack, asked)
        result = predict_inputs(model, inputs, options, files)
        try:
            print_answers(model.predictor.name, result.recording, inputs)
        finally:
            for failure in result.failures:
                click.echo(f"Error: {printable(failure)}", err=True)
            for file in (csv_file, json_file):
                if file and not result.answered:
                    warn(f"{shown(file)} was not written, since there is no answer to any INPUT")
    if result.failures:
        ctx.exit(ExitCode.WRONG_INPUT)


def _open_model(stack: ExitStack, asked: Asked) -> AnsweringModel:
    if asked.url is None:
        bundle, predictor = asked.open_bundle(stack)
        spec = bundle.spec
        return AnsweringModel(
            predictor, spec.prompts.class_names, spec.clip.vision.image_size, bundle.manifest.frame_interval_s
        )
    from dfer_deploy.client.blocking import ServedPredictor

    client = asked.open_client()
    served = stack.enter_context(ServedPredictor(client))
    return AnsweringModel(served, client.labels, client.image_size, client.frame_interval_s)
