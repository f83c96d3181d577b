"""``dfer-deploy bench``"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from dfer_deploy.bundles.bundle import MANIFEST_NAME
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.commands.options import bundle_argument, json_option
from dfer_deploy.commands.policy_file import policy_from_toml
from dfer_deploy.commands.proposal import propose_serving
from dfer_deploy.commands.runtimes import choose_contestants, host_code_option, open_predictors, runtime_option
from dfer_deploy.commands.serving import check_served, served_bundle
from dfer_deploy.console import stdout, step, table, warn
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.files import check_outputs, sha256_of_file, write_json
from dfer_deploy.measurement.bench import (
    LEAST_REQUESTS,
    REQUESTS_FOR_P99,
    BenchResult,
    LoadTarget,
    Subject,
    counted,
    machine,
    ratio,
    spread,
)
from dfer_deploy.measurement.bench import bench as run_bench
from dfer_deploy.measurement.bench_policy import BenchPolicy
from dfer_deploy.measurement.footprint import measured_footprint, memory_is_measured
from dfer_deploy.measurement.regression import Regression, check_comparable, check_first, compare, read_bench
from dfer_deploy.triton.environment import triton_environment


def _concurrencies(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1 or numbers[-1] > 256:
        raise click.BadParameter(f"{value!r} is no list of numbers from 1 to 256 such as 1,2,4")
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
    "clip_path",
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
    "older_file",
    metavar="OLD.json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Exit with 1 if a contestant is slower than in this older --json FILE, by more than both runs wavered, and "
    "with 3 if one of them is missing or too noisy to tell.",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    help="Exit with 1 beyond the limits of [bench] in this file.",
)
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    bundle: Path,
    url: str | None,
    checkpoint: Path | None,
    chosen: tuple[str, ...],
    allow_host_code: bool,
    concurrencies: tuple[int, ...],
    rounds: int,
    requests: int | None,
    clip_path: Path | None,
    propose: bool,
    p99_ms: float | None,
    older_file: Path | None,
    policy_file: Path | None,
    json_file: Path | None,
) -> None:
    """Measure throughput and latency of BUNDLE served, with the real perf_analyzer.

    What runs in this process (onnxruntime, built TensorRT engines, and PyTorch, with --checkpoint) is measured in the
    same run, in turn with it. With --propose, servers with other instances, queue delays and batches take turns
    instead, and the best of them is proposed; that takes minutes.
    """
    check_outputs({"--json": json_file}, [checkpoint, clip_path, older_file, policy_file], bundle)
    opened = open_bundle(bundle)
    size = opened.spec.clip.vision.image_size
    clips = clip_from_path(clip_path, size)[np.newaxis] if clip_path else drawn_clips(2, size)
    if propose:
        if url or checkpoint or chosen or older_file or policy_file:
            raise click.UsageError(
                "--propose starts servers of its own; leave away --url, --checkpoint, --runtime, --compare and --policy"
            )
        propose_serving(
            opened,
            clips,
            concurrencies,
            rounds=rounds,
            requests=requests,
            p99_ms=p99_ms,
            host_code_allowed=allow_host_code,
            json_file=json_file,
        )
        return
    if p99_ms is not None:
        raise click.UsageError("--p99-ms is the budget of a proposal; add --propose")
    older = read_bench(older_file) if older_file else None
    if older:
        check_comparable(older, machine=machine(), rounds=rounds)
    contestants = choose_contestants(opened, chosen, url=url, host_code_allowed=allow_host_code)
    limits: BenchPolicy | None = policy_from_toml(policy_file).bench if policy_file else None
    if limits:
        limits.check_measurable(served=contestants.served, memory=memory_is_measured(opened, url), requests=requests)
        concurrencies = tuple(sorted({*concurrencies, limits.concurrency}))
    if not contestants.runtimes and checkpoint is None:
        raise DferDeployError("bench compares with what runs in this process; add --runtime onnxruntime-cpu")
    manifest = opened.manifest
    subject = Subject(sha256_of_file(bundle / MANIFEST_NAME), manifest.checkpoint.sha256, manifest.precision)
    with ExitStack() as stack:
        predictors = open_predictors(stack, opened, contestants, host_code_allowed=allow_host_code)
        if checkpoint is not None:
            from dfer_deploy.checkpoints.checkpoint import load_checkpoint
            from dfer_deploy.runtimes.torch_predictor import TorchPredictor

            with step(f"read {checkpoint}"):
                model = load_checkpoint(checkpoint).build_model()
                predictors.append(stack.enter_context(TorchPredictor(model)))
        if older:
            check_first(older, predictors[0].name)
        server, own_port, address = None, None, url
        if contestants.served:
            if address is None:
                endpoints = stack.enter_context(served_bundle(opened, host_code_allowed=allow_host_code))
                own_port, address = endpoints.grpc_port, endpoints.grpc_url
            check_served(stack.enter_context(TritonPredictor(address, opened.contract)), opened)
            server = LoadTarget(triton_environment(), address, manifest.name)
        result = run_bench(
            subject,
            server,
            predictors,
            clips,
            concurrencies,
            rounds=rounds,
            requests=requests,
            least_requests=REQUESTS_FOR_P99 if limits and limits.p99_ms is not None else LEAST_REQUESTS,
        )
        resources = measured_footprint(opened, server_port=own_port if memory_is_measured(opened, url) else None)
    _print(result)
    for what, reason in contestants.left_out.items():
        stdout.print(f"not measured: {what}, since {reason}", markup=False)
    comparison = compare(older, result) if older else None
    failures = limits.failures(result, size_mb=resources.size_mb, memory_mb=resources.memory_mb) if limits else []
    if json_file:
        compared = (
            {"comparison": dataclasses.asdict(comparison) | {"undecided": comparison.undecided}} if comparison else {}
        )
        content = dataclasses.asdict(result) | dataclasses.asdict(resources) | {"left_out": contestants.left_out}
        write_json(json_file, content | compared | {"policy_failures": failures})
    if comparison:
        _print_comparison(comparison, str(older_file))
    for failure in failures:
        stdout.print(f"failed: {failure}", markup=False)
    if limits and limits.limits_nothing:
        warn(f"{policy_file} limits nothing here; set p99_ms, throughput, size_mb or memory_mb in its table [bench]")
    elif limits and not failures:
        stdout.print(f"within the limits of {policy_file}", markup=False)
    if failures or (comparison and comparison.regressed):
        ctx.exit(ExitCode.GATE_FAILED)
    if comparison and comparison.undecided:
        ctx.exit(ExitCode.UNDECIDED)


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
