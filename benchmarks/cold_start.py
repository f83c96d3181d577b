"""Measure every stage from nothing to the first answer: its duration and its peak memory.

    python benchmarks/cold_start.py [--quick] [--rounds N] [--json FILE] [--plot PNG]

Every stage is a separate process that is started anew in every round. Each round begins with another stage:

- ``export fp32``, ``export fp16`` (not with --quick): ``dfer-deploy export``.
- ``PyTorch``, ``onnxruntime``: a new interpreter until it has answered the first clip, including imports and weights.
- ``server ready, new``: from the server's start until it reports that it is ready, including the packed copy of the
  image encoder (see the Python backend's model.py).
- ``server ready``: the same if the copy exists. ``first answer`` and ``second answer`` of a clip of 16 frames over gRPC
  follow; the first includes connection and configuration.

Memory is the peak of the resident set until the end of the stage; for the server, the sum over its processes (shared
memory counts for each). The files were read before, so they come from the page cache.

The cost of a second instance is the memory that all processes of a server with two instances of each model hold after
an answer, minus that of a server with single instances: the sum of their proportional set sizes, in which a page that k
processes map counts 1/k for each (proc(5), smaps_rollup).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from common import draw_bars, figure, figures, in_words, parsed, parser, rotated, seconds_of, write
from random_model import exported, random_checkpoint

from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import progress_bar, stdout, table
from dfer_deploy.export.configure import configure_bundle
from dfer_deploy.files import sha256_of_file
from dfer_deploy.measurement.footprint import held_bytes, server_processes
from dfer_deploy.triton.cache import cache_folder
from dfer_deploy.triton.environment import TritonEnvironment, triton_environment
from dfer_deploy.triton.server import TritonServer

RUNTIMES = ("PyTorch", "onnxruntime")
Stages = dict[str, tuple[float, float]]
"""Seconds and peak memory in GB, by stage."""

LAUNCHER = """
import os, sys, time
start = time.perf_counter()
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(time.perf_counter() - start, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
"""Starts a process and prints its seconds and its peak memory in KiB (getrusage(2)). It is small, because a process
inherits the peak of the process that starts it."""


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--runtime", nargs=2, metavar=("NAME", "PATH"), help="for this script's own processes")
    arguments = parsed(options)
    if arguments.runtime:
        first_answer(arguments.runtime[0], Path(arguments.runtime[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), rounds=arguments.rounds, quick=arguments.quick)
    table(
        "from nothing to the first answer: median (range) over the rounds",
        ("stage", "seconds", "peak GB"),
        [(name, in_words(row["seconds"]), in_words(row["peak_gb"])) for name, row in result["stages"].items()],
    )
    stdout.print(f"a second instance costs {in_words(result['second_instance_mb'])} MB", markup=False)
    stages = result["stages"]
    picture, (seconds, memory) = figure("From nothing to the first answer", 2, quick=arguments.quick)
    draw_bars(
        seconds, "seconds (bar: median, dots: rounds)", {n: row["seconds"]["rounds"] for n, row in stages.items()}
    )
    draw_bars(memory, "peak memory, GB", {name: row["peak_gb"]["rounds"] for name, row in stages.items()})
    memory.set_yticklabels([])
    write(arguments, result, picture)


def measure(folder: Path, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Run every stage once a round."""
    checkpoint = random_checkpoint(folder, quick=quick)
    bundle = exported(checkpoint)
    environment = triton_environment()  # creating the environment is not part of a start
    size = bundle.spec.clip.vision.image_size
    held: dict[int, list[float]] = {1: [], 2: []}

    def alone(name: str, *words: object) -> Stages:
        return {name: run_alone(*words)}

    def served(instances: int, *, new: bool = False) -> Stages:
        configured, _ = configure_bundle(bundle.path, ServingOptions(max_batch_size=16, instances=instances))
        if new:
            remove_packed_copies(bundle)
        found, memory = start_server(environment, configured, size)
        if new:
            return {"server ready, new": found["server ready"]}
        held[instances].append(memory)
        return found if instances == 1 else {}

    def export(precision: str) -> Stages:
        output = folder / "again"
        shutil.rmtree(output, ignore_errors=True)  # an up-to-date export would not be repeated
        options = ("--target", "embedded", "--precision", precision)
        return alone(f"export {precision}", "-m", "dfer_deploy", "export", checkpoint, "-o", output, *options)

    work: dict[str, Callable[[], Stages]] = {
        f"export {precision}": partial(export, precision) for precision in (("fp32",) if quick else ("fp32", "fp16"))
    }
    for name, path in zip(RUNTIMES, (checkpoint, bundle.path), strict=True):
        work[name] = partial(alone, name, __file__, "--runtime", name, path)
    # The first round keeps this order, so that a packed copy exists for the two stages that need one.
    work["server, new"] = partial(served, 1, new=True)
    work["server"] = partial(served, 1)
    work["server, instances: 2"] = partial(served, 2)
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    with progress_bar() as bar:
        task = bar.add_task("", total=rounds * len(work))
        for turn in range(rounds):
            for name in rotated(list(work), turn):
                bar.update(task, description=name)
                for stage, (taken, peak) in work[name]().items():
                    seconds.setdefault(stage, []).append(taken)
                    peaks.setdefault(stage, []).append(peak)
                bar.advance(task)
    remove_packed_copies(bundle)
    return {
        "stages": {
            name: {"seconds": figures(values), "peak_gb": figures(peaks[name])} for name, values in seconds.items()
        },
        "second_instance_mb": figures([(two - one) * 1e3 for one, two in zip(held[1], held[2], strict=True)]),
    }


def remove_packed_copies(bundle: Bundle) -> None:
    """Remove the packed copies of the image encoder, so that the next server makes one."""
    for copy in (cache_folder() / "packed").glob(f"{sha256_of_file(bundle.image_encoder_onnx)[:24]}-*"):
        shutil.rmtree(copy)


def run_alone(*words: object) -> tuple[float, float]:
    """Return the seconds and the peak memory in GB of a Python process.

    Raises:
        RuntimeError: the process fails.
    """
    command = [sys.executable, *map(str, words)]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    seconds, peak_kib = done.stdout.split()[-2:]
    return float(seconds), int(peak_kib) * 1024 / 1e9


def first_answer(runtime: str, path: Path) -> None:
    """Open a checkpoint or a bundle and answer one clip: the work of a stage of ``RUNTIMES`` in its process."""
    if runtime == "PyTorch":
        from dfer_deploy.checkpoints.checkpoint import load_checkpoint
        from dfer_deploy.runtimes.torch_predictor import TorchPredictor

        model = load_checkpoint(path).build_model()
        TorchPredictor(model).predict(drawn_clips(1, model.spec.clip.vision.image_size))
    else:
        from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor

        bundle = open_bundle(path)
        OnnxRuntimePredictor.from_bundle(bundle).predict(drawn_clips(1, bundle.spec.clip.vision.image_size))


def start_server(environment: TritonEnvironment, bundle: Bundle, image_size: int) -> tuple[Stages, float]:
    """Time the server's start and two answers, with their peak memory; return also the GB that the server holds."""
    clips = drawn_clips(1, image_size)
    server = TritonServer(environment, bundle.model_repository)
    found: Stages = {}

    def peak() -> float:
        return sum(map(peak_gb, server_processes(server.endpoints.grpc_port)))

    try:
        taken = seconds_of(server.start)
        found["server ready"] = taken, peak()
        with ExitStack() as stack:
            start = time.perf_counter()
            client = stack.enter_context(TritonPredictor(server.endpoints.grpc_url, bundle.contract))
            client.predict(clips)
            taken = time.perf_counter() - start
            found["first answer"] = taken, peak()
            taken = seconds_of(lambda: client.predict(clips))
            found["second answer"] = taken, peak()
        held = held_bytes(server_processes(server.endpoints.grpc_port))
    finally:
        server.stop()
    if held is None:
        raise RuntimeError("the memory of the server's processes cannot be read")
    return found, held / 1e9


def peak_gb(process: int) -> float:
    """Return the peak of a process's resident set in GB (proc(5), VmHWM)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(int(line.split()[1]) * 1024 / 1e9 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
