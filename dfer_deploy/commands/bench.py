"""``dfer-deploy bench``"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from dfer_deploy.api.bench_bundle import BenchOptions, bench_bundle, clips_to_ask
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.commands.options import bundle_argument, host_code_option, json_option, runtime_option
from dfer_deploy.commands.proposal import propose_serving
from dfer_deploy.console import stdout, table, warn
from dfer_deploy.files import check_outputs, write_json
from dfer_deploy.measurement.bench_policy import BenchPolicy
from dfer_deploy.measurement.bench_result import (
    REQUESTS_FOR_P99,
    BenchResult,
    Regression,
    counted,
    ratio,
    spread,
)


def _concurrencies(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1 or numbers[-1] > 256:
        raise click.BadParameter(f"{value!r} is not a list of numbers from 1 to 256 such as 1,2,4")
    return numbers


@click.command()
@bundle_argument
@click.option("--url", help="Load this server (grpc://… or http://…) instead of starting one.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Also measure this checkpoint in PyTorch.")
@runtime_option
@host_code_option
@click.option(
    "--concurrency",
    "concurrencies",
    default="1,2,4",
    show_default=True,
    callback=_concurrencies,
    help="Requests in flight, a comma between them.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Alternations of all contestants.")
@click.option(
    "--requests",
    type=click.IntRange(2),
    help="Requests in each of perf_analyzer's measurements.  [default: 3 seconds' worth, 8 to 500; 100 to 500 where "
    "the policy limits the 99th percentile]",
)
@click.option(
    "--clip",
    type=click.Path(path_type=Path),
    help="A video or frame folder to ask about.  [default: drawn frames]",
)
@click.option("--propose", is_flag=True, help="Try serving options on this machine and propose the best ones.")
@click.option(
    "--p99-ms",
    type=click.FloatRange(0, min_open=True),
    help="With --propose: the largest 99th percentile of the latency that is allowed.",
)
@click.option(
    "--compare",
    metavar="OLD.json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Exit with 1 if a contestant is slower than in this older --json FILE, by more than both runs wavered, and "
    "with 3 if one of them is missing or too noisy to tell.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="Exit with 1 beyond the limits of [bench] in this file.",
)
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    bundle: Path,
    propose: bool,
    p99_ms: float | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure throughput and latency of the served BUNDLE with the real perf_analyzer.

    The runtimes of this process (onnxruntime, built TensorRT engines, and PyTorch with --checkpoint) are measured in
    the same run, in alternation with the server. With --propose, servers with different instances, queue delays and
    batch sizes take turns instead, and the best configuration is proposed; that takes minutes.
    """
    asked = BenchOptions(**options)
    check_outputs({"--json": json_file}, asked.files, bundle)
    opened = open_bundle(bundle)
    if propose:
        if asked.url or asked.checkpoint or asked.runtimes or asked.compare or asked.policy:
            raise click.UsageError(
                "--propose starts servers of its own; omit --url, --checkpoint, --runtime, --compare and --policy"
            )
        propose_serving(
            opened,
            clips_to_ask(opened, asked.clip),
            asked.concurrencies,
            rounds=asked.rounds,
            requests=asked.requests,
            p99_ms=p99_ms,
            host_code_allowed=asked.allow_host_code,
            json_file=json_file,
        )
        return
    if p99_ms is not None:
        raise click.UsageError("--p99-ms is the budget of a proposal; add --propose")
    limits = asked.limits  # read once: the file may be a pipe
    result = bench_bundle(opened, replace(asked, policy=limits))
    if json_file:
        write_json(json_file, result.to_dict())
    _print_result(result, asked, limits)
    ctx.exit(int(result.exit_code))


def _print_result(result: BenchResult, asked: BenchOptions, limits: BenchPolicy | None) -> None:
    _print(result)
    for what, reason in result.left_out.items():
        stdout.print(f"not measured: {what}, since {reason}", markup=False)
    if result.comparison:
        _print_comparison(result.comparison, str(asked.compare))
    for failure in result.policy_failures:
        stdout.print(f"failed: {failure}", markup=False)
    if limits is None:
        return
    if limits.limits_nothing:
        warn(f"{asked.policy} limits nothing here; set p99_ms, throughput, size_mb or memory_mb in its table [bench]")
    elif not result.policy_failures:
        stdout.print(f"within the limits of {asked.policy}", markup=False)


def _print(result: BenchResult) -> None:
    base = result.in_process[0]
    rows: list[tuple[object, ...]] = []
    for local in result.in_process:
        p50, p95, p99 = np.percentile(local.latency_ms, [50, 95, 99])
        tail = f"{p99:.1f}" if len(local.latency_ms) >= REQUESTS_FOR_P99 else ""
        times = (f"{p50:.1f}", f"{p95:.1f}", tail, "", "")
        rows.append((local.name, spread(local.throughput), ratio(local.throughput, base.throughput), *times))
    for served in result.served:
        fields = ("p50_ms", "p95_ms", "p99_ms", "queue_ms", "compute_infer_ms")
        p50, p95, p99, queue, compute = (f"{served.median(field):.1f}" for field in fields)
        tail = p99 if counted(result.requests, served.concurrency) >= REQUESTS_FOR_P99 else ""
        times = (p50, p95, tail, queue, compute)
        rows.append((served.name, spread(served.throughput), ratio(served.throughput, base.throughput), *times))
    table(
        "clips of 16 frames: median (range) over the rounds",
        ("", "clips/s", f"against {base.name}", "p50 ms", "p95 ms", "p99 ms", "queue ms", "compute ms"),
        rows,
    )
    measured = f"; {result.requests} requests in each of perf_analyzer's measurements" if result.served else ""
    stdout.print(f"{result.machine}{measured}", markup=False)


def _print_comparison(comparison: Regression, older: str) -> None:
    rows = [
        (
            change.name,
            change.throughput,
            change.against_first or "",
            "slower"
            if change.has_regressed
            else "too noisy to tell"
            if change.is_undecided
            else "not slower beyond the noise",
        )
        for change in comparison.contestants
    ]
    first = comparison.contestants[0]
    table(f"against {older}", ("", "clips/s", f"ratio to {first.name}", "verdict"), rows)
    for change in comparison.subject_changes:
        stdout.print(f"not the same as in the older run: {change}", markup=False)
    if comparison.added:
        stdout.print(f"not in the older run: {', '.join(comparison.added)}", markup=False)
    for sentence in comparison.undecided:
        stdout.print(f"undecided: {sentence}", markup=False)
    if first.has_regressed:
        stdout.print(
            f"{first.name} itself is slower, or the machine is: measure again before you believe it", markup=False
        )
