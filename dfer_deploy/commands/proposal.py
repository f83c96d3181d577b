"""``dfer-deploy bench --propose``"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import click
from click.core import ParameterSource

from dfer_deploy.api.serving import installation_for, served_bundle
from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.commands.serving_options import option_text
from dfer_deploy.commands.signals import handled
from dfer_deploy.console import progress_bar, stdout, table
from dfer_deploy.errors import ExitCode
from dfer_deploy.files import write_json
from dfer_deploy.machine.cgroups import usable_cores
from dfer_deploy.measurement.bench import machine
from dfer_deploy.measurement.bench_result import REQUESTS_FOR_P99, spread
from dfer_deploy.measurement.proposal import Proposal, Stage, propose
from dfer_deploy.measurement.trials import Candidate, Trials
from dfer_deploy.runtimes.predictor import Frames
from dfer_deploy.specs import require
from dfer_deploy.triton.environment import triton_environment

LOADS_OF_A_GPU = (1, 8, 32)
"""Default numbers of requests in flight for a GPU. Small numbers alone would never form a batch."""

_MAX_INSTANCES_ON_A_GPU = 8
"""Largest number of instances to try on a GPU, because each of them takes memory of the GPU."""

_USUAL_CANDIDATES = 9
"""Usual number of candidates, from which the duration is estimated."""

_HEADINGS = {
    "max_batch_size": "batch up to",
    "instances": "instances",
    "queue_delay_us": "queue µs",
    "cuda_graph_batches": "CUDA graphs",
}
_MIN_ROUNDS = 3
"""Smallest number of rounds, because the spread over the rounds decides."""

_SHOWN_BATCHES = 4
"""Largest number of batch sizes that a line of the table shows."""


def propose_serving(
    bundle: Bundle,
    clips: Frames,
    concurrencies: tuple[int, ...],
    *,
    rounds: int,
    requests: int | None,
    p99_ms: float | None,
    host_code_allowed: bool,
    json_file: Path | None,
) -> None:
    """Try serving options on this machine; print all measurements and the command that applies the best.

    If a latency limit is given and no configuration keeps it, the process ends with exit code 1.

    Args:
        bundle: the bundle. It is left unchanged; a copy is served.
        clips: clips to send, uint8 [N, 16, S, S, 3].
        concurrencies: numbers of requests in flight. For a GPU target, the command's default is replaced by larger
            numbers.
        rounds: number of rounds, at least 3, because their spread decides.
        requests: number of requests in each measurement; None for about 2 seconds' worth.
        p99_ms: largest accepted 99th percentile of the latency in milliseconds, or None.
        host_code_allowed: let the server execute the code that version-compatible engines carry.
        json_file: file to which everything is written too, or None.

    Raises:
        DferDeployError: there are too few rounds, or the bundle cannot be served on this machine.
    """
    require(rounds >= _MIN_ROUNDS, f"--rounds is {rounds}, --propose needs {_MIN_ROUNDS} to see how they differ")
    target, current = bundle.manifest.target, bundle.manifest.serving
    context = click.get_current_context()
    if target != "embedded" and context.get_parameter_source("concurrencies") is ParameterSource.DEFAULT:
        concurrencies = LOADS_OF_A_GPU
    with _sigterm_like_ctrl_c(), _served_copy(bundle, host_code_allowed) as serve, progress_bar() as bar:
        task = bar.add_task("start", total=rounds * len(concurrencies) * _USUAL_CANDIDATES)
        trials = Trials(serve, triton_environment(), bundle.contract, clips, concurrencies, rounds, bar, task)
        trials.calibrate(current, requests)
        result = propose(
            current,
            target,
            concurrencies,
            trials.measure,
            most_instances=usable_cores() if target == "embedded" else _MAX_INSTANCES_ON_A_GPU,
            p99_ms=p99_ms,
        )
    commands = _commands(bundle, result)
    for stage in result.stages:
        _print_stage(stage)
    _print_proposal(result, current, commands, p99_ms)
    _print_requests(trials.requests)
    if json_file:
        content = dataclasses.asdict(result) | {"machine": machine(), "requests": trials.requests, "commands": commands}
        write_json(json_file, content | {"p99_budget_ms": p99_ms})
    if not result.within_budget:
        context.exit(int(ExitCode.GATE_FAILED))


@contextlib.contextmanager
def _served_copy(
    bundle: Bundle, host_code_allowed: bool
) -> Iterator[Callable[[ServingOptions], AbstractContextManager[str]]]:
    """Yield a function that serves a copy of the bundle with other options, as a context with the server's address."""
    from dfer_deploy.export.configure import configure_bundle, temporary_bundle

    # Check the bundle, not its copy, so that the message names a path that remains.
    installation = installation_for(bundle, host_code_allowed=host_code_allowed)
    with temporary_bundle(bundle) as copy:

        @contextlib.contextmanager
        def serve(serving: ServingOptions) -> Iterator[str]:
            configured, _ = configure_bundle(copy, serving)
            with served_bundle(configured, installation, quiet=True) as endpoints:
                yield endpoints.grpc_url

        yield serve


def _print_requests(requests: Mapping[int, int]) -> None:
    """Print the number of requests in each measurement, by requests in flight."""
    few = min(requests.values()) < REQUESTS_FOR_P99
    stdout.print(
        f"{machine()}; requests in each measurement: "
        + ", ".join(f"{count} with {concurrency} in flight" for concurrency, count in requests.items())
        + ("; of fewer than 100 the 99th percentile is about the slowest" if few else ""),
        markup=False,
    )


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that neither servers nor the copy of the bundle are left behind."""
    with handled([signal.SIGTERM], signal.default_int_handler):
        yield


def _commands(bundle: Bundle, result: Proposal) -> list[str]:
    """Return the commands to type; empty if the bundle is configured like the proposal."""
    old, new, path = bundle.manifest.serving, result.serving, shlex.quote(str(bundle.path))
    options = [
        f"--{name.replace('_', '-')} {option_text(value)}"
        for name, value in dataclasses.asdict(new).items()
        if value != getattr(old, name)
    ]
    commands = [f"dfer-deploy configure {path} {' '.join(options)}"] if options else []
    built = bundle.engines
    if built is not None:
        profile = built.engines[bundle.contract.image_encoder.name].profile["frames"]
        if profile.opt[0] != result.opt_batch:
            commands.append(f"dfer-deploy build {path} --opt-batch {result.opt_batch}")
    return commands


def _print_stage(stage: Stage) -> None:
    first = stage.candidates[0].serving
    varied = [
        field.name
        for field in dataclasses.fields(ServingOptions)
        if len({getattr(candidate.serving, field.name) for candidate in stage.candidates}) > 1
    ]
    rows = [row for index, candidate in enumerate(stage.candidates) for row in _rows(stage, index, candidate, varied)]
    title = f"{stage.what}, with {_options_text(first, without=varied)}"
    headings = [_HEADINGS[name] for name in varied]
    table(title, (*headings, "in flight", "clips/s: median (range)", "p99 ms", "batches executed", ""), rows)
    for candidate in stage.candidates:
        if candidate.failure is not None:
            stdout.print(f"{_options_text(candidate.serving)} failed: {candidate.failure}", markup=False)


def _rows(stage: Stage, index: int, candidate: Candidate, varied: Sequence[str]) -> Iterator[tuple[str, ...]]:
    options = tuple(option_text(getattr(candidate.serving, name)) for name in varied)
    if candidate.failure is not None:
        yield (*options, "", "", "", "", "failed")
    for load in candidate.loads:
        encoder = next(iter(load.batches.values()))
        total = sum(encoder.values())
        often = sorted(encoder.items(), key=lambda item: -item[1])[:_SHOWN_BATCHES]
        batches = ", ".join(f"{batch}: {count / total:.0%}" for batch, count in sorted(often))
        mark = "kept" if index == stage.winner else ""
        yield (*options, str(load.concurrency), str(spread(load.throughput)), f"{load.p99_ms:.1f}", batches, mark)


def _options_text(serving: ServingOptions, without: Sequence[str] = ()) -> str:
    texts = {
        "instances": f"{serving.instances} instance{'s' if serving.instances > 1 else ''}",
        "queue_delay_us": f"queue delay {serving.queue_delay_us} µs",
        "max_batch_size": f"batches up to {serving.max_batch_size}",
    }
    return ", ".join(text for name, text in texts.items() if name not in without)


def _print_proposal(result: Proposal, current: ServingOptions, commands: Sequence[str], p99_ms: float | None) -> None:
    for stage in result.stages:
        stdout.print(f"{stage.what}: {stage.reason}", markup=False)
    reached = f"{spread(result.point.throughput)} clips/s with {result.point.concurrency} in flight"
    verdict = (
        "the best that was measured" if result.within_budget else f"nothing kept a p99 of {p99_ms} ms; the nearest"
    )
    stdout.print(
        f"{verdict}: {_options_text(result.serving)}; {reached}, p99 {result.point.p99_ms:.1f} ms", markup=False
    )
    if not commands:
        stdout.print("the bundle is configured so already")
    else:
        stdout.print("to take it:")
    for command in commands:
        stdout.print(f"  {command}", markup=False)
