"""The limits of ``bench`` that a release must keep: the table ``[bench]`` of a policy file."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from dfer_deploy.errors import spelled
from dfer_deploy.measurement.bench_result import REQUESTS_FOR_P99, BenchResult, counted
from dfer_deploy.specs import require
from dfer_deploy.verification.verify_policy import require_limits


@dataclass(frozen=True)
class BenchPolicy:
    """Limits of ``bench``.

    Attributes:
        concurrency: number of requests in flight at which latency and throughput are compared with their limits.
        p99_ms: largest 99th percentile of the served latency in milliseconds, as the median over the rounds. Each round
            then counts at least 100 requests, because with fewer the percentile would be the maximum.
        throughput: smallest number of served clips a second, as the median over the rounds.
        size_mb: largest size of the bundle in 10^6 bytes. A file with several names counts once.
        memory_mb: largest memory of the server and its processes after the load, in 10^6 bytes.
    """

    concurrency: int = 1
    p99_ms: float | None = None
    throughput: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        require_limits(self, "bench")
        require(1 <= self.concurrency <= 256, f"bench.concurrency is {self.concurrency}, expected 1 to 256")

    @property
    def limits_nothing(self) -> bool:
        """Whether there are no limits, so that every measurement passes."""
        return {self.p99_ms, self.throughput, self.size_mb, self.memory_mb} == {None}

    def check_measurable(self, *, served: bool, memory: bool, requests: int | None) -> None:
        """Refuse limits for quantities that will not be measured, before anything is measured.

        Args:
            served: whether a server is measured.
            memory: whether the server's memory is measured.
            requests: number of requests to count in each measurement; None for as many as the limits need.

        Raises:
            DferDeployError: a limit needs a quantity that will not be measured.
        """
        require(
            self.p99_ms is None or requests is None or counted(requests, self.concurrency) >= REQUESTS_FOR_P99,
            f"the policy limits p99_ms, and of {requests} requests the 99th percentile is the largest latency; give "
            f"{spelled('requests', REQUESTS_FOR_P99)} or more, or omit it",
        )
        require(
            served or (self.p99_ms is None and self.throughput is None),
            f"the policy limits what is served, and no server is measured; omit "
            f"{spelled('runtimes')} or add {spelled('runtimes', ('triton',))}",
        )
        require(
            (served and memory) or self.memory_mb is None,
            "the policy limits memory_mb, which is measured only of an embedded server that bench itself starts; "
            f"omit {spelled('url')}, or take the limit out of the policy",
        )

    def failures(self, result: BenchResult) -> list[str]:
        """Return one sentence for each limit that a measurement exceeds.

        Args:
            result: the measurement. A quantity that was not measured exceeds every limit.
        """
        served = next((one for one in result.served if one.concurrency == self.concurrency), None)
        found = (
            ("p99_ms", None if served is None else served.median("p99_ms"), self.p99_ms),
            ("memory_mb", result.memory_mb, self.memory_mb),
            ("size_mb", result.size_mb, self.size_mb),
        )
        failures = [
            f"{name} {'was not measured' if value is None else f'is {value:.4g}'}, at most {limit:g} is accepted"
            for name, value, limit in found
            if limit is not None and (value is None or not value <= limit)
        ]
        if self.throughput is not None:
            median = None if served is None else statistics.median(served.throughput)
            if median is None or not median >= self.throughput:
                words = "was not measured" if median is None else f"is {median:.4g} clips/s"
                failures.append(f"throughput {words}, at least {self.throughput:g} is accepted")
        return failures
