"""Measure a bundle: served, next to the same graphs and the same checkpoint in this process."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfer_deploy.api.contestants import check_runtimes, choose_contestants, open_predictors
from dfer_deploy.api.policy_file import policy_from_toml
from dfer_deploy.api.serving import check_served, served_bundle
from dfer_deploy.bundles.bundle import MANIFEST_NAME, Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.console import step
from dfer_deploy.errors import extras_named, spelled
from dfer_deploy.files import sha256_of_file
from dfer_deploy.measurement.bench import MIN_REQUESTS, LoadTarget, Measurements, machine, measure
from dfer_deploy.measurement.bench_policy import BenchPolicy
from dfer_deploy.measurement.bench_result import REQUESTS_FOR_P99, BenchResult, Subject
from dfer_deploy.measurement.footprint import Footprint, measured_footprint, memory_is_measured
from dfer_deploy.measurement.regression import check_comparable, check_first, compare, read_bench
from dfer_deploy.plain_data import check_fields, checked_arguments
from dfer_deploy.runtimes.predictor import Frames, Predictor
from dfer_deploy.specs import require
from dfer_deploy.triton.environment import triton_environment

MAX_CONCURRENCY = 256
"""Requests in flight: perf_analyzer holds a connection and a clip for each."""


@dataclass(frozen=True)
class BenchOptions:
    """Options of a measurement, named like the options of ``dfer-deploy bench``.

    Attributes:
        url: measure this running server instead of starting one.
        checkpoint: also measure this checkpoint in PyTorch.
        runtimes: measure only these (names from ``RUNTIMES``, and ``triton``); empty for all that the bundle and the
            machine allow.
        allow_host_code: let TensorRT execute the code that version-compatible engines carry.
        concurrencies: numbers of requests in flight, each at least 1.
        rounds: how often all contestants take turns, at least 1.
        requests: number of requests in each measurement of perf_analyzer; None for about three seconds' worth.
        clip: a video or a folder of frames to send; None for drawn frames.
        compare: JSON file of an older result. The comparison fails if the older result was faster.
        policy: TOML file with limits in its table ``[bench]``, or the limits; None for no limits.

    Raises:
        DferDeployError: an option is out of range.
    """

    url: str | None = None
    checkpoint: Path | str | None = None
    runtimes: tuple[str, ...] = ()
    allow_host_code: bool = False
    concurrencies: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    requests: int | None = None
    clip: Path | str | None = None
    compare: Path | str | None = None
    policy: Path | str | BenchPolicy | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_runtimes(self.runtimes)
        require(self.rounds >= 1, f"rounds is {self.rounds}, expected at least 1")
        require(self.requests is None or self.requests >= 2, f"requests is {self.requests}, expected at least 2")
        require(
            bool(self.concurrencies) and all(1 <= count <= MAX_CONCURRENCY for count in self.concurrencies),
            f"concurrencies is {self.concurrencies}, expected numbers from 1 to {MAX_CONCURRENCY}",
        )

    @property
    def limits(self) -> BenchPolicy | None:
        """The limits of the policy, read from its file where it is one.

        Raises:
            DferDeployError: the file cannot be read.
        """
        if self.policy is None or isinstance(self.policy, BenchPolicy):
            return self.policy
        return policy_from_toml(Path(self.policy)).bench

    @property
    def files(self) -> list[Path]:
        """All files that the measurement reads."""
        policy = None if isinstance(self.policy, BenchPolicy) else self.policy
        named = (self.checkpoint, self.clip, self.compare, policy)
        return [Path(path) for path in named if path is not None]


def clips_to_ask(bundle: Bundle, clip: Path | str | None) -> Frames:
    """Return the clips that a measurement sends, uint8 [N, 16, S, S, 3]: the given clip (N = 1), or two drawn clips.

    Raises:
        DferDeployError: the clip cannot be read.
    """
    size = bundle.spec.clip.vision.image_size
    return drawn_clips(2, size) if clip is None else clip_from_path(Path(clip), size)[np.newaxis]


@extras_named("measuring a bundle")
@checked_arguments
def bench_bundle(bundle: Bundle | Path | str, options: BenchOptions | None = None) -> BenchResult:
    """Measure the throughput and latency of a served bundle with perf_analyzer, and of the in-process runtimes.

    Args:
        bundle: an opened bundle, or its folder.
        options: what to measure, and how often; None for the defaults.

    Returns:
        The result, whether or not it keeps its limits; see ``BenchResult.exit_code``.

    Raises:
        DferDeployError: the bundle is damaged, a requested runtime cannot run here, or a server fails.
    """
    options = options or BenchOptions()
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    clips = clips_to_ask(opened, options.clip)
    older = read_bench(Path(options.compare)) if options.compare else None
    if older:
        check_comparable(older, machine=machine(), rounds=options.rounds)
    contestants = choose_contestants(
        opened, options.runtimes, url=options.url, host_code_allowed=options.allow_host_code
    )
    limits = options.limits or BenchPolicy()
    limits.check_measurable(
        served=contestants.served, memory=memory_is_measured(opened, options.url), requests=options.requests
    )
    require(
        bool(contestants.runtimes) or options.checkpoint is not None,
        f"bench compares with what runs in this process; add {spelled('runtimes', ('onnxruntime-cpu',))}",
    )
    with ExitStack() as stack:
        predictors = open_predictors(stack, opened, contestants, host_code_allowed=options.allow_host_code)
        if options.checkpoint is not None:
            predictors.append(_torch_predictor(stack, Path(options.checkpoint)))
        if older:
            check_first(older, predictors[0].name)
        found, footprint = _measured(stack, opened, predictors, clips, options, limits, contestants.served)
    manifest = opened.manifest
    result = BenchResult(
        machine=machine(),
        subject=Subject(sha256_of_file(opened.path / MANIFEST_NAME), manifest.checkpoint.sha256, manifest.precision),
        requests=found.requests,
        in_process=found.in_process,
        served=found.served,
        size_mb=footprint.size_mb,
        memory_mb=footprint.memory_mb,
        left_out=contestants.left_out,
    )
    return replace(
        result,
        comparison=compare(older, result) if older else None,
        policy_failures=tuple(limits.failures(result)),
    )


def _measured(
    stack: ExitStack,
    bundle: Bundle,
    predictors: list[Predictor],
    clips: Frames,
    options: BenchOptions,
    limits: BenchPolicy,
    is_served: bool,
) -> tuple[Measurements, Footprint]:
    """Start a server if no address is given, and measure everything. The server's memory is read after the load."""
    server, own_port, address = None, None, options.url
    if is_served:
        if address is None:
            endpoints = stack.enter_context(served_bundle(bundle, host_code_allowed=options.allow_host_code))
            own_port, address = endpoints.grpc_port, endpoints.grpc_url
        check_served(stack.enter_context(TritonPredictor(address, bundle.contract)), bundle)
        server = LoadTarget(triton_environment(), address, bundle.manifest.name)
    limited = set() if options.policy is None else {limits.concurrency}
    found = measure(
        server,
        predictors,
        clips,
        sorted({*options.concurrencies, *limited}),
        rounds=options.rounds,
        requests=options.requests,
        min_requests=MIN_REQUESTS if limits.p99_ms is None else REQUESTS_FOR_P99,
    )
    with_memory = memory_is_measured(bundle, options.url)
    return found, measured_footprint(bundle, server_port=own_port if with_memory else None)


def _torch_predictor(stack: ExitStack, checkpoint: Path) -> Predictor:
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor

    with step(f"read {checkpoint}"):
        return stack.enter_context(TorchPredictor(load_checkpoint(checkpoint).build_model()))
