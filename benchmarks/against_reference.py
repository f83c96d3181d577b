"""Compare the work on one clip in the reference implementation's way with ours, one step after the other.

    python benchmarks/against_reference.py [--quick] [--rounds N] [--json FILE] [--plot PNG]

Five contestants take turns. Each starts with the frames as bytes, as a client has them, and ends with the logits:

- ``reference``: the work of upstream's ``main.py`` and ``models/Generate_Model.py`` at test time: float images, the
  image encoder in eager PyTorch, and for every clip again the text encoder over all 77 tokens of every class.
- ``text once``: our PyTorch model, which keeps the text features until a weight changes.
- ``onnxruntime``: the two exported graphs in fp32, in this process.
- ``served gRPC``, ``served HTTP``: the same graphs behind Triton, one request in flight, including the client's work.

All logits must agree before anything is timed. A speed-up is the ratio of two clips of the same round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from common import draw_bars, figure, figures, in_words, parsed, parser, take_turns, write
from random_model import exported, random_checkpoint

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import table
from dfer_deploy.measurement.bench_result import ratio
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Float32, Frames
from dfer_deploy.verification.limits import LIMITS

REFERENCE = "reference"


def main() -> None:
    arguments = parsed(parser(__file__, __doc__))
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), rounds=arguments.rounds, quick=arguments.quick)
    rows = [
        (name, in_words(row["seconds"]), in_words(row["speedup"]), f"{row['logit_error']:.1e}")
        for name, row in result["contestants"].items()
    ]
    table(
        "one clip of 16 frames: median (range) over the rounds", ("", "seconds", "times as fast", "logit error"), rows
    )
    picture, (seconds, speedup) = figure("One clip, against the reference", 2, height=3.0, quick=arguments.quick)
    contestants = result["contestants"]
    draw_bars(seconds, "seconds a clip", {name: row["seconds"]["rounds"] for name, row in contestants.items()})
    draw_bars(speedup, "times as fast as the reference", {n: r["speedup"]["rounds"] for n, r in contestants.items()})
    speedup.set_yticklabels([])
    write(arguments, result, picture)


def measure(folder: Path, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Prepare the contestants, compare their answers, and let them take turns."""
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor

    checkpoint = random_checkpoint(folder, quick=quick)
    bundle = exported(checkpoint)
    clips = drawn_clips(2, bundle.spec.clip.vision.image_size)
    with ExitStack() as stack:
        ours = stack.enter_context(TorchPredictor(load_checkpoint(checkpoint).build_model()))
        graphs = stack.enter_context(OnnxRuntimePredictor.from_bundle(bundle))
        endpoints = stack.enter_context(served_bundle(bundle))
        grpc, http = (
            stack.enter_context(TritonPredictor(url, bundle.contract))
            for url in (endpoints.grpc_url, endpoints.http_url)
        )
        answers: dict[str, Callable[[Frames], Float32]] = {
            REFERENCE: reference(load_checkpoint(checkpoint).build_model()),
            "text once": lambda frames: ours.predict(frames).logits,
            "onnxruntime": lambda frames: graphs.predict(frames).logits,
            "served gRPC": lambda frames: grpc.predict(frames).logits,
            "served HTTP": lambda frames: http.predict(frames).logits,
        }
        errors = logit_errors({name: answer(clips) for name, answer in answers.items()}, LIMITS["fp32"].logits)
        contestants = {name: lambda a=answer: a(clips[:1]) for name, answer in answers.items()}
        times = take_turns(contestants, rounds, seconds=0.5)
    return {
        "contestants": {
            name: {
                "seconds": figures(seconds),
                "speedup": figures([theirs / own for theirs, own in zip(times[REFERENCE], seconds, strict=True)]),
                "logit_error": errors[name],
            }
            for name, seconds in times.items()
        },
        "served_against_onnxruntime": str(ratio(times["onnxruntime"], times["served gRPC"])),
    }


def reference(model: Any) -> Callable[[Frames], Float32]:
    """Return a function that answers as upstream at test time (``main.py``, ``validate``), without caching."""
    import torch
    from training import PlainDferClip

    from dfer_deploy.model.dfer_clip import images_from_frames

    plain = PlainDferClip(model).eval()

    def logits(frames: Frames) -> Float32:
        with torch.no_grad():
            answer: Float32 = plain(images_from_frames(torch.from_numpy(frames))).numpy()
        return answer

    return logits


def logit_errors(answers: dict[str, Float32], limit: float) -> dict[str, float]:
    """Return the largest difference of every contestant's logits from the reference's.

    Raises:
        RuntimeError: a difference exceeds ``limit``. The contestants then do different work, so times have no meaning.
    """
    errors = {name: float(np.abs(logits - answers[REFERENCE]).max()) for name, logits in answers.items()}
    for name, error in errors.items():
        if not error <= limit:
            raise RuntimeError(f"{name} does not compute the same: its logits differ by {error}, at most {limit}")
    return errors


if __name__ == "__main__":
    main()
