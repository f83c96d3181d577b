"""Pause processes of the embedded server under load, and compare every answer with the one that was asked for.

    python benchmarks/pauses.py [--quick] [--trials N] [--json FILE] [--plot PNG]

Clients ask for clips whose logits are known from onnxruntime in this process. Meanwhile, trials pause something with
SIGSTOP for 0.3 to 2.5 seconds, in turn:

- ``a stub``: the process of one model.
- ``the server``: tritonserver and all its stubs.
- ``the machine``: these and the guard, as when a virtual machine or a container is paused.

An answer is wrong if its logits are not those of its clip. Half of the clients do not retry: their errors show what
happened, by code. For the others, an error is an answer that was lost. The time without service of a trial is the
longest time between two right answers of all clients, from the pause on.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import figure, figures, in_words, parsed, parser, positive, write
from random_model import exported, random_checkpoint

from dfer_deploy.api.serving import installation_for
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.client import Client
from dfer_deploy.console import progress_bar, table
from dfer_deploy.errors import CallError
from dfer_deploy.measurement.footprint import server_processes
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.triton.restarts import RestartPolicy, keep_serving
from dfer_deploy.triton.server import TritonServer

KINDS = ("a stub", "the server", "the machine")
CLIENTS = 8
CLIPS = 24
SECONDS = (0.3, 2.5)
"""The shortest and the longest pause. Triton gives up a stub after a second."""

MAX_GAP_S = 60.0
"""Longest time without service, in seconds, after which the run is given up."""

TOLERANCE = 1e-3
"""Largest difference of a right logit. Those of different clips must differ by much more."""


@dataclass
class Tally:
    """What the clients saw, which all of them add to."""

    answers: int = 0
    wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    last: float = field(default_factory=time.monotonic)
    gap: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def right(self) -> None:
        now = time.monotonic()
        self.answers += 1
        self.gap, self.last = max(self.gap, now - self.last), now


def main() -> None:
    options = parser(__file__, __doc__, rounds=False)
    options.add_argument("--trials", type=positive, help="number of pauses (default: 200, quick: 6)")
    arguments = parsed(options)
    trials = arguments.trials or (6 if arguments.quick else 200)
    with tempfile.TemporaryDirectory() as folder:
        # The tiny model answers often, so a pause meets more requests than with the full-size one.
        bundle = exported(random_checkpoint(Path(folder), quick=True))
        result = run(bundle, trials)
    gaps: dict[str, list[float]] = result.pop("gaps")
    rows = [(kind, len(values), in_words(figures(values))) for kind, values in gaps.items() if values]
    table("seconds without service: median (range)", ("paused", "trials", "seconds"), rows)
    table("answers of all clients", ("what", "number"), [(name, value) for name, value in result.items()])
    picture, (axes,) = figure("Seconds without service after a pause", 1, quick=True)
    for place, (kind, values) in enumerate(gaps.items()):
        axes.plot([place + random.uniform(-0.2, 0.2) for _ in values], values, "o", markersize=3, alpha=0.5, label=kind)  # noqa: S311
    axes.set_xticks(range(len(gaps)), gaps)
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    write(arguments, {**result, "seconds": {kind: figures(values) for kind, values in gaps.items() if values}}, picture)


def run(bundle: Bundle, trials: int) -> dict[str, Any]:
    """Serve the bundle, pause it ``trials`` times under load, and return the counts and the gaps by kind."""
    size = bundle.spec.clip.vision.image_size
    clips = np.random.default_rng(0).integers(0, 256, (CLIPS, 16, size, size, 3), dtype=np.uint8)
    clips[:, :, :, :] = clips[:, :, :1, :1] // 2 + clips // 2  # each frame has a colour, so that the clips differ
    with OnnxRuntimePredictor.from_bundle(bundle) as predictor:
        expected = predictor.predict(clips).logits
    distances = [float(np.abs(one - other).max()) for place, one in enumerate(expected) for other in expected[:place]]
    if min(distances) < 10 * TOLERANCE:
        raise RuntimeError(f"two clips have almost the same logits ({min(distances):.2g}); their mix would not show")
    server = TritonServer(installation_for(bundle), bundle.model_repository)
    server.start()
    url, tally, done = server.endpoints.grpc_url, Tally(), threading.Event()

    def backoff(seconds: float) -> None:
        if done.is_set():  # the server was stopped at the end
            sys.exit()

    policy = RestartPolicy(restarts=10**6, first_backoff_s=0, sleep=backoff)
    threads = [threading.Thread(target=keep_serving, args=(server, policy), daemon=True)]
    threads += [
        threading.Thread(target=ask, args=(url, clips, expected, tally, done, number), daemon=True)
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    gaps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with progress_bar() as bar:
        task = bar.add_task("", total=trials)
        for trial in range(trials):
            kind = KINDS[trial % len(KINDS)]
            bar.update(task, description=kind)
            gaps[kind].append(pause(server, kind, tally))
            bar.advance(task)
    done.set()
    for thread in threads[1:]:
        thread.join(timeout=60)
    server.stop()
    return {
        "trials": trials,
        "answers": tally.answers,
        "wrong": tally.wrong,
        "lost although retried": sum(tally.lost.values()),
        **{f"without retries: {code}": number for code, number in sorted(tally.errors.items())},
        "gaps": gaps,
    }


def pause(server: TritonServer, kind: str, tally: Tally) -> float:
    """Pause something, let it go on, and return the longest time without a right answer until service is back."""
    while len(found := server_processes(server.endpoints.grpc_port)) < 5:  # it has just been restarted
        time.sleep(0.1)
    processes = [psutil.Process(pid) for pid in found]
    stubs = [process for process in processes if "stub" in process.name()]
    chosen = [random.choice(stubs)] if kind == "a stub" else processes  # noqa: S311
    guard = processes[0].parent()
    if kind == "the machine" and guard is not None:
        chosen = [*processes, guard]
    tally.gap = 0.0
    for process in chosen:
        signal_to(process, signal.SIGSTOP)
    time.sleep(random.uniform(*SECONDS))  # noqa: S311
    for process in reversed(chosen):
        signal_to(process, signal.SIGCONT)
    time.sleep(1.5)  # a server that breaks later still counts for this trial
    while (gap := time.monotonic() - tally.last) > 0.5:
        if gap > MAX_GAP_S:
            raise RuntimeError(f"no right answer for {MAX_GAP_S:g} s after a pause of {kind}")
        time.sleep(0.1)
    return tally.gap


def signal_to(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def ask(url: str, clips: Any, expected: Any, tally: Tally, done: threading.Event, number: int) -> None:
    """Ask for one clip after another until ``done``, and compare the logits. Odd clients do not retry."""
    generator = np.random.default_rng(number)
    retries = 0 if number % 2 else 60
    with Client(url, retries=60, deadline_s=120) as patient, Client(url, retries=retries, deadline_s=120) as client:
        patient.predict(clips[0])
        while not done.is_set():
            index = int(generator.integers(len(clips)))
            try:
                answer = client.predict(clips[index])
            except CallError as error:
                with tally.lock:
                    (tally.errors if number % 2 else tally.lost)[error.code] += 1
                time.sleep(0.05)
                continue
            with tally.lock:
                if np.abs(list(answer.logits.values()) - expected[index]).max() > TOLERANCE:
                    tally.wrong += 1
                else:
                    tally.right()


if __name__ == "__main__":
    main()
