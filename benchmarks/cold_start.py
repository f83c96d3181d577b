"""From nothing to the first answer: how long every stage takes, and the most memory that it needs.

    python benchmarks/cold_start.py [--quick] [--rounds N] [--json FILE] [--plot PNG]

Every stage is a process of its own, started anew in every round:

- ``export fp32``, ``export fp16`` (not with --quick): ``dfer-deploy export``.
- ``PyTorch``, ``onnxruntime``: a fresh interpreter until the first clip is answered, imports and weights included.
- ``server ready, new``: from its start until the server says that it answers, where the packed copy of the image
  encoder (see the Python backend's model.py) has to be made first.
- ``server ready``: the same with the copy there; ``first answer`` and ``second answer`` of a clip of 16 frames over
  gRPC follow, the first with connection and configuration.

Memory is the peak of the resident set, of the server the sum over its processes (what they share counts for each). The
files were read before: they come from the page cache.

What a second instance costs is what all processes of a server with two instances of each model hold after an answer,
less what one with single instances holds: the sum of their proportional set sizes, in which a page that k processes
map counts for 1/k in each (proc(5), smaps_rollup).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import draw_bars, exported, figure, figures, in_words, parsed, parser, random_checkpoint, seconds_of, write

from dfer_deploy.bundle import Bundle, ServingOptions, open_bundle
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import progress_bar, stdout, table
from dfer_deploy.export.configure import configure_bundle
from dfer_deploy.files import sha256_of_file
from dfer_deploy.resources import held_bytes, server_processes
from dfer_deploy.triton.client import TritonPredictor
from dfer_deploy.triton.environment import cache_folder, triton_environment
from dfer_deploy.triton.server import TritonServer

RUNTIMES = ("PyTorch", "onnxruntime")
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(time.perf_counter() - start, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
"""Starts a process and prints its seconds and its peak memory in KiB (getrusage(2)). Itself small, because a process
inherits the peak of the one that starts it."""


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
        [
            (name, in_words(row["seconds"]), in_words(row["peak_gb"]) if "peak_gb" in row else "")
            for name, row in result["stages"].items()
        ],
    )
    stdout.print(f"a second instance costs {in_words(result['second_instance_mb'])} MB", markup=False)
    stages = result["stages"]
    picture, (seconds, memory) = figure("From nothing to the first answer", 2, quick=arguments.quick)
    draw_bars(
        seconds, "seconds (bar: median, dots: rounds)", {n: row["seconds"]["rounds"] for n, row in stages.items()}
    )
    peaks = {name: row["peak_gb"]["rounds"] for name, row in stages.items() if "peak_gb" in row}
    draw_bars(memory, "peak memory, GB", peaks)
    write(arguments, result, picture)


def measure(folder: Path, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Runs every stage once a round."""
    checkpoint = random_checkpoint(folder, quick=quick)
    bundle = exported(checkpoint)
    environment = triton_environment()  # where it has to be made first, that is not a start
    size = bundle.spec.clip.vision.image_size
    stages: dict[str, Callable[[], tuple[float, float]]] = {
        f"export {precision}": lambda p=precision: run_alone(  # type: ignore[misc]
            "-m", "dfer_deploy", "export", checkpoint, "-o", folder / "again", "--target", "embedded", "--precision", p,
            "--force",
        )
        for precision in (("fp32",) if quick else ("fp32", "fp16"))
    }  # fmt: skip
    for name, path in zip(RUNTIMES, (checkpoint, bundle.path), strict=True):
        stages[name] = lambda n=name, p=path: run_alone(__file__, "--runtime", n, p)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    second: list[float] = []
    with progress_bar() as bar:
        task = bar.add_task("", total=rounds * (len(stages) + 3))
        for _ in range(rounds):
            for name, stage in stages.items():
                bar.update(task, description=name)
                taken, peak = stage()
                seconds.setdefault(name, []).append(taken)
                peaks.setdefault(name, []).append(peak)
                bar.advance(task)
            held = {}
            for instances in (1, 2):
                configured, _ = configure_bundle(bundle.path, ServingOptions(max_batch_size=16, instances=instances))
                if instances == 1:
                    bar.update(task, description="server, new")
                    remove_packed_copies(bundle)
                    server, _, _ = start_server(environment, configured, size)
                    seconds.setdefault("server ready, new", []).append(server["server ready"])
                    bar.advance(task)
                bar.update(task, description=f"server, instances: {instances}")
                server, peak, held[instances] = start_server(environment, configured, size)
                if instances == 1:
                    for name, taken in server.items():
                        seconds.setdefault(name, []).append(taken)
                    peaks.setdefault("server ready", []).append(peak)
                bar.advance(task)
            second.append((held[2] - held[1]) * 1e3)
    remove_packed_copies(bundle)
    return {
        "stages": {
            name: {"seconds": figures(values)} | ({"peak_gb": figures(peaks[name])} if name in peaks else {})
            for name, values in seconds.items()
        },
        "second_instance_mb": figures(second),
    }


def remove_packed_copies(bundle: Bundle) -> None:
    """Removes what servers have made of the image encoder, so that the next one makes it anew."""
    for copy in (cache_folder() / "packed").glob(f"{sha256_of_file(bundle.image_encoder_onnx)[:24]}-*"):
        shutil.rmtree(copy)


def run_alone(*words: object) -> tuple[float, float]:
    """Seconds and peak memory in GB of a Python process.

    Raises:
        RuntimeError: it fails.
    """
    command = [sys.executable, *map(str, words)]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    seconds, peak_kib = done.stdout.split()[-2:]
    return float(seconds), int(peak_kib) * 1024 / 1e9


def first_answer(runtime: str, path: Path) -> None:
    """What a stage of ``RUNTIMES`` does in its process: opens a checkpoint or a bundle and answers one clip."""
    if runtime == "PyTorch":
        from dfer_deploy.checkpoint import load_checkpoint
        from dfer_deploy.runtimes.torch import TorchPredictor

        model = load_checkpoint(path).build_model()
        TorchPredictor(model).predict(drawn_clips(1, model.spec.clip.vision.image_size))
    else:
        from dfer_deploy.runtimes.onnxruntime import OnnxRuntimePredictor

        bundle = open_bundle(path)
        OnnxRuntimePredictor.from_bundle(bundle).predict(drawn_clips(1, bundle.spec.clip.vision.image_size))


def start_server(environment: Any, bundle: Bundle, image_size: int) -> tuple[dict[str, float], float, float]:
    """Seconds of the server's start and of two answers, and all its processes' peak memory and held memory in GB."""
    clips = drawn_clips(1, image_size)
    server = TritonServer(environment, bundle.model_repository)
    try:
        ready = seconds_of(server.start)
        start = time.perf_counter()
        with TritonPredictor(server.endpoints.grpc_url, bundle.contract) as client:
            client.predict(clips)
            first = time.perf_counter() - start
            second = seconds_of(lambda: client.predict(clips))
        processes = server_processes(server.endpoints.grpc_port)
        peak, held = sum(map(peak_gb, processes)), held_bytes(processes)
    finally:
        server.stop()
    if held is None:
        raise RuntimeError("the memory of the server's processes cannot be read")
    return {"server ready": ready, "first answer": first, "second answer": second}, peak, held / 1e9


def peak_gb(process: int) -> float:
    """The peak of a process's resident set in GB (proc(5), VmHWM)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(int(line.split()[1]) * 1024 / 1e9 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
