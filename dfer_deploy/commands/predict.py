"""``dfer-deploy predict``"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from dfer_deploy.bundle import open_bundle
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.commands.options import json_option
from dfer_deploy.commands.runtimes import host_code_option
from dfer_deploy.console import progress, table
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.files import write_json
from dfer_deploy.runtimes.available import RUNTIMES, Runtime, open_predictor, usual_runtime
from dfer_deploy.runtimes.predictor import Prediction, Predictor


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT…")
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Answer in this process.")
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    help="Of this process, with --bundle.  [default: TensorRT where its engines run here, else onnxruntime]",
)
@host_code_option
@click.option("--url", help="Ask a server: grpc://HOST:PORT or http://HOST:PORT.")
@click.option("--model", default="dfer", show_default=True, help="The ensemble's name, with --url.")
@click.option("--timeout-s", type=float, default=60.0, show_default=True, help="Deadline of one request, with --url.")
@json_option
@click.pass_context
def predict(
    ctx: click.Context,
    inputs: tuple[Path, ...],
    bundle_path: Path | None,
    runtime: Runtime | None,
    allow_host_code: bool,
    url: str | None,
    model: str,
    timeout_s: float,
    json_file: Path | None,
) -> None:
    """Print the class probabilities of every INPUT, a video file or a folder of frames.

    16 frames spread over the whole INPUT are resized to the model's square. The model was trained on cropped faces:
    crop first.
    """
    if (bundle_path is None) == (url is None):
        raise click.UsageError("give either --bundle BUNDLE or --url URL")
    if url and runtime:
        raise click.UsageError("--runtime chooses what runs in this process, --url asks a server; choose one")
    answers, failures = [], []
    with ExitStack() as stack:
        predictor: Predictor
        if bundle_path is not None:
            bundle = open_bundle(bundle_path)
            runtime = runtime or usual_runtime(bundle, host_code_allowed=allow_host_code)
            predictor = stack.enter_context(open_predictor(runtime, bundle, host_code_allowed=allow_host_code))
            labels, image_size = bundle.spec.prompts.class_names, bundle.spec.clip.vision.image_size
        else:
            from dfer_deploy.triton.client import TritonPredictor

            assert url is not None  # noqa: S101 - checked above, for mypy
            client = stack.enter_context(TritonPredictor(url, model, timeout_s=timeout_s))
            labels, image_size = client.labels(), client.image_size
            predictor = client
        for path in progress(inputs, "predict"):
            try:
                clip = clip_from_path(path, image_size)
            except DferDeployError as error:
                failures.append(str(error))
                continue
            answers.append((path, predictor.predict(clip[np.newaxis])))
    if answers:
        table(
            predictor.name,
            ("input", "expression", "probabilities"),
            [(path, labels[int(answer.logits[0].argmax())], _ranked(answer, labels)) for path, answer in answers],
        )
    for failure in failures:
        click.echo(f"Error: {failure}", err=True)
    if json_file:
        results = [
            {
                "input": str(path),
                "expression": labels[int(answer.logits[0].argmax())],
                "probabilities": dict(zip(labels, answer.probabilities[0].tolist(), strict=True)),
                "logits": dict(zip(labels, answer.logits[0].tolist(), strict=True)),
            }
            for path, answer in answers
        ]
        write_json(json_file, {"answered_by": predictor.name, "results": results, "failures": failures})
    if failures:
        ctx.exit(ExitCode.WRONG_INPUT)


def _ranked(answer: Prediction, labels: Sequence[str]) -> str:
    """All classes with their probabilities, the most probable first."""
    probabilities = answer.probabilities[0]
    return "  ".join(f"{labels[k]}\N{NO-BREAK SPACE}{probabilities[k]:.3f}" for k in np.argsort(-probabilities))
