"""Compare live streams, whose frames the server encodes once, with windows that encode all 16 frames again.

    python benchmarks/streaming.py [--quick] [--rounds N] [--against CHECKOUT] [--json FILE] [--plot PNG]

Consecutive windows share 15 of their 16 frames. The contestants take turns in every round:

- ``1 stream``, ``4 streams``, …: that many clients of the streaming ensemble at the same time. Each sends its next
  frame after the answer to the last one. The results are the answers of all clients and the latency of each answer.
- ``windows, graphs``: a sliding window over one stream whose 16 frames go through the same graphs, in this process.
- ``windows, PyTorch``: the same in eager PyTorch, the class texts encoded once.
- ``windows, reference``: the same in the reference implementation's way (``against_reference.py``), which encodes the
  class texts every time.

Windows are equally fast however many streams share them, because one fills the machine. All logits must agree before
anything is timed. A speed-up is the ratio within one round.

``--against`` instead compares this version with another: the streams of this checkout, and those of CHECKOUT with its
own export, server and client (``git worktree add CHECKOUT 9e23f85`` gives the release whose server kept the state of
streams). Both run in separate processes and take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from against_reference import logit_errors, reference
from common import draw_bars, figure, figures, in_words, parsed, parser, write
from random_model import exported, random_checkpoint

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.client import Client, Stream
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.clips.sampling import padded
from dfer_deploy.console import progress_bar, table
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Frames
from dfer_deploy.specs import MAX_FRAMES
from dfer_deploy.verification.limits import LIMITS

STREAMS = (1, 4, 16, 64)
GRAPHS, PYTORCH, REFERENCE = "windows, graphs", "windows, PyTorch", "windows, reference"
AGAINST = {"against_graphs": GRAPHS, "against_pytorch": PYTORCH, "against_reference": REFERENCE}

FRAMES_A_TURN = 32
"""Smallest number of frames of all streams together in a turn; every stream sends at least two."""


@dataclass(frozen=True)
class Turn:
    """The result of one contestant in one round: predictions a second, and the latency of each in seconds."""

    rate: float
    waits: list[float]


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with the streams of another version")
    arguments = parsed(options)
    if arguments.against is not None:
        compare_versions(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), rounds=arguments.rounds, quick=arguments.quick)
    contestants = result["contestants"]
    table(
        "live streams: median (range) over the rounds",
        ("", "predictions/s", "median wait, ms", "95 % wait, ms", *(f"× {name}" for name in AGAINST.values())),
        [
            (name, *(in_words(row[what]) for what in ("rate", "p50_ms", "p95_ms", *AGAINST)))
            for name, row in contestants.items()
        ],
    )
    picture, (rates, waits) = figure("Live streams", 2, height=3.0, quick=arguments.quick)
    draw_bars(rates, "predictions a second", {name: row["rate"]["rounds"] for name, row in contestants.items()})
    draw_bars(waits, "median wait for one, ms", {name: row["p50_ms"]["rounds"] for name, row in contestants.items()})
    waits.set_yticklabels([])
    write(arguments, result, picture)


def measure(folder: Path, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Prepare the contestants, compare their answers, and let them take turns."""
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor

    checkpoint = random_checkpoint(folder, quick=quick)
    bundle = exported(checkpoint)
    size = bundle.spec.clip.vision.image_size
    frames = drawn_clips(2, size).reshape(-1, size, size, 3)
    with ExitStack() as stack:
        graphs = stack.enter_context(OnnxRuntimePredictor.from_bundle(bundle))
        eager = stack.enter_context(TorchPredictor(load_checkpoint(checkpoint).build_model()))
        answer_as_reference = reference(load_checkpoint(checkpoint).build_model())
        url = stack.enter_context(served_bundle(bundle)).grpc_url
        clients = [stack.enter_context(Client(url)) for _ in range(max(STREAMS))]
        error = largest_error(clients[0], graphs, frames)
        windows = {
            GRAPHS: lambda clip: graphs.predict(clip).logits,
            PYTORCH: lambda clip: eager.predict(clip).logits,
            REFERENCE: answer_as_reference,
        }
        clip = frames[np.newaxis, :MAX_FRAMES]
        answers = {name: answer(clip) for name, answer in windows.items()}
        logit_errors({"reference": answers.pop(REFERENCE), **answers}, LIMITS["fp32"].logits)
        contestants = {
            **{streams_named(count): lambda c=count: streamed(clients[:c], frames) for count in STREAMS},
            **{name: lambda a=answer: encoded_anew(a, clip) for name, answer in windows.items()},
        }
        turns = take_turns(contestants, rounds)
    rates = {name: [turn.rate for turn in of_one] for name, of_one in turns.items()}
    return {
        "contestants": {
            name: {
                "rate": figures(rates[name]),
                "p50_ms": figures([1000 * statistics.median(turn.waits) for turn in of_one]),
                "p95_ms": figures([1000 * float(np.percentile(turn.waits, 95)) for turn in of_one]),
                **{key: figures(ratios(rates[name], rates[other])) for key, other in AGAINST.items()},
            }
            for name, of_one in turns.items()
        },
        "largest_logit_error": error,
    }


def compare_versions(arguments: argparse.Namespace) -> None:
    """Let the streams of this checkout and of another one take turns."""
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checkpoint = random_checkpoint(Path(folder), quick=arguments.quick)
        versions = {
            name: stack.enter_context(Version(checkout, checkpoint, Path(folder) / name))
            for name, checkout in (("this", here), ("other", arguments.against))
        }
        contestants = {
            f"{streams_named(count)}, {name}": lambda v=version, c=count: v.streamed(c)
            for count in STREAMS
            for name, version in versions.items()
        }
        turns = take_turns(contestants, arguments.rounds)
    rows = {}
    for count in map(streams_named, STREAMS):
        rates = {name: [turn.rate for turn in turns[f"{count}, {name}"]] for name in versions}
        rows[count] = {name: figures(values) for name, values in rates.items()}
        rows[count]["ratio"] = figures(ratios(rates["this"], rates["other"]))
    table(
        f"live streams, predictions a second, this version against {arguments.against}: median (range)",
        ("", "this", "other", "this / other"),
        [(name, *(in_words(found[what]) for what in ("this", "other", "ratio"))) for name, found in rows.items()],
    )
    picture, (axes,) = figure("Live streams, this version / the other", 1, height=3.0, quick=arguments.quick)
    draw_bars(axes, "predictions a second, ratio", {name: found["ratio"]["rounds"] for name, found in rows.items()})
    write(arguments, {"against": str(arguments.against), "streams": rows}, picture)


class Version:
    """The streams of one checkout, in a process that imports its package and its benchmarks."""

    def __init__(self, checkout: Path, checkpoint: Path, folder: Path) -> None:
        self._checkout = checkout
        folder.mkdir()
        copy = Path(shutil.copy(checkpoint, folder))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _VERSION, str(copy)],
            cwd=checkout / "benchmarks",
            env=os.environ | {"PYTHONPATH": f"{checkout.resolve()}:{(checkout / 'benchmarks').resolve()}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def streamed(self, count: int) -> Turn:
        """Measure ``streamed`` in that process."""
        assert self._process.stdin is not None  # noqa: S101 - opened above, for mypy
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self._checkout} ended with {self._process.wait()}")
        return Turn(*json.loads(answer))

    def __enter__(self) -> Version:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            if self._process.stdin is not None:
                self._process.stdin.close()


_VERSION = """
import json, sys
from contextlib import ExitStack
from pathlib import Path
import streaming

bundle = streaming.exported(Path(sys.argv[1]))
size = bundle.spec.clip.vision.image_size
frames = streaming.drawn_clips(2, size).reshape(-1, size, size, 3)
with ExitStack() as stack:
    url = stack.enter_context(streaming.served_bundle(bundle)).grpc_url
    clients = [stack.enter_context(streaming.Client(url)) for _ in range(max(streaming.STREAMS))]
    with streaming.OnnxRuntimePredictor.from_bundle(bundle) as graphs:
        streaming.largest_error(clients[0], graphs, frames)
    for count in sys.stdin:
        turn = streaming.streamed(clients[: int(count)], frames)
        print(json.dumps([turn.rate, turn.waits]), flush=True)
"""


def streams_named(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


def ratios(rates: list[float], others: list[float]) -> list[float]:
    return [own / other for own, other in zip(rates, others, strict=True)]


def take_turns(contestants: dict[str, Any], rounds: int) -> dict[str, list[Turn]]:
    """Run every contestant once a round, each round beginning with another one, after a turn that does not count."""
    names = list(contestants)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with progress_bar() as bar:
        task = bar.add_task("", total=(rounds + 1) * len(names))
        for round_number in range(-1, rounds):
            first = max(0, round_number) % len(names)
            for name in names[first:] + names[:first]:
                bar.update(task, description=name)
                turn = contestants[name]()
                if round_number >= 0:
                    turns[name].append(turn)
                bar.advance(task)
    return turns


def streamed(clients: list[Client], frames: Frames) -> Turn:
    """Let every client follow its own stream; the time is from the first frame to the last answer."""
    count = max(2, FRAMES_A_TURN // len(clients))
    with ExitStack() as stack:
        streams = [stack.enter_context(client.stream()) for client in clients]
        pool = stack.enter_context(ThreadPoolExecutor(len(streams)))
        start = time.perf_counter()
        waits = list(pool.map(lambda stream: waits_of(stream, frames[:count]), streams))
        seconds = time.perf_counter() - start
    return Turn(count * len(clients) / seconds, [wait for of_one in waits for wait in of_one])


def waits_of(stream: Stream, frames: Frames) -> list[float]:
    waits = []
    for frame in frames:
        start = time.perf_counter()
        stream.push(frame)
        waits.append(time.perf_counter() - start)
    return waits


def encoded_anew(answer: Any, clip: Frames) -> Turn:
    """Time two windows of 16 frames, one after the other."""
    waits = []
    for _ in range(2):
        start = time.perf_counter()
        answer(clip)
        waits.append(time.perf_counter() - start)
    return Turn(len(waits) / sum(waits), waits)


def largest_error(client: Client, graphs: OnnxRuntimePredictor, frames: Frames) -> float:
    """Return the largest difference between the answers to a stream and those of the graphs to its windows.

    Raises:
        RuntimeError: the difference is too large. The contestants then do different work, so times have no meaning.
    """
    error, limit = 0.0, LIMITS["fp32"].same_graphs
    with client.stream() as stream:
        for end in range(1, len(frames) + 1):
            answer = np.array(list(stream.push(frames[end - 1]).logits.values()), np.float32)
            window = padded([*frames[max(0, end - MAX_FRAMES) : end]])
            expected = graphs.predict(window[np.newaxis]).logits[0]
            error = max(error, float(np.abs(answer - expected).max()))
    if not error <= limit:
        raise RuntimeError(f"the stream's logits differ by {error} from those of its windows, at most {limit}")
    return error


if __name__ == "__main__":
    main()
