"""Limits that a release is held against, from a TOML file that can lie under version control."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dfer_deploy.errors import DferDeployError
from dfer_deploy.measurement.bench import REQUESTS_FOR_P99, BenchResult, counted
from dfer_deploy.runtimes.available import Runtime
from dfer_deploy.specs import require, spec_from_dict
from dfer_deploy.verification.limits import Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_POINTS = 100.0
"""Scores are in percent: no two of them differ by more."""

LARGEST_LOGIT_ERROR = 1e39
"""No two finite float32 numbers differ by more."""

_MAX_BYTES = 1 << 20


def _require_limits(policy: VerifyPolicy | BenchPolicy, where: str) -> None:
    for name, value in vars(policy).items():
        require(
            value is None or isinstance(value, tuple) or (math.isfinite(value) and value >= 0),
            f"{where}.{name} is {value}, expected a number of at least 0",
        )


@dataclass(frozen=True)
class VerifyPolicy:
    """Limits of ``verify``; what is not named keeps the precision's default.

    Attributes:
        margin: of UAR and WAR, percentage points, in (0, 100].
        max_logit_error: largest difference of a logit of the whole model.
        max_flip_rate: largest share of clips whose answer changes, in (0, 1].
        max_recall_drop: by how many points the recall of a class may fall.
        max_calibration_rise: by how many points the expected calibration error may rise.
        require: ways of serving that must be compared, as ``--runtime`` names them.
    """

    margin: float | None = None
    max_logit_error: float | None = None
    max_flip_rate: float | None = None
    max_recall_drop: float | None = None
    max_calibration_rise: float | None = None
    require: tuple[Literal[Runtime, "triton"], ...] = ()

    def __post_init__(self) -> None:
        _require_limits(self, "verify")
        require(self.margin != 0, "verify.margin is 0, expected more: no number of clips proves two models the same")
        require((self.margin or 0) <= MOST_POINTS, f"verify.margin is {self.margin}, expected at most {MOST_POINTS:g}")
        require(
            (self.max_logit_error or 0) <= LARGEST_LOGIT_ERROR,
            f"verify.max_logit_error is {self.max_logit_error}, expected at most {LARGEST_LOGIT_ERROR:g}",
        )
        require(
            self.max_flip_rate != 0,
            "verify.max_flip_rate is 0, which no number of clips proves: without a single flip among n clips the bound "
            "is about 3 / n; give at least that, for example 0.003 for 1000 clips",
        )
        require((self.max_flip_rate or 0) <= 1, f"verify.max_flip_rate is {self.max_flip_rate}, expected at most 1")

    def check_compared(self, compared: Collection[str], left_out: Collection[str]) -> None:
        """Before anything is compared: what the policy requires must not be left out.

        Args:
            compared: what will be, as ``--runtime`` names it.
            left_out: why something will not be.

        Raises:
            DferDeployError: a way that is required is not among them.
        """
        for name in self.require:
            reasons = "".join(f" ({reason})" for reason in left_out)
            require(
                name in compared,
                f"the policy requires {name}, but only {', '.join(compared)} would be compared{reasons}; leave "
                "--in-process and --runtime away, run it where that can be, or take it out of the policy",
            )

    def limits(self, default: Limits) -> Limits:
        """The default's limits, with those of the policy instead where it has some."""
        given: dict[str, Any] = {
            "points": self.margin,
            "logits": self.max_logit_error,
            "flips": self.max_flip_rate,
            "recall_drop": self.max_recall_drop,
            "calibration_rise": self.max_calibration_rise,
        }
        return replace(default, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class BenchPolicy:
    """Limits of ``bench``.

    Attributes:
        concurrency: requests in flight at which latency and throughput count.
        p99_ms: largest 99th percentile of the served latency, the median over the rounds; each of them then counts
            at least 100 requests, because of fewer it would be the maximum.
        throughput: least clips a second that are served, the median over the rounds.
        size_mb: largest size of the bundle in 10^6 bytes; a file under several names counts once.
        memory_mb: most memory of the server and its processes after the load, in 10^6 bytes.
    """

    concurrency: int = 1
    p99_ms: float | None = None
    throughput: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        _require_limits(self, "bench")
        require(1 <= self.concurrency <= 256, f"bench.concurrency is {self.concurrency}, expected 1 to 256")

    @property
    def limits_nothing(self) -> bool:
        """Whether there is no limit, so that every measurement holds it."""
        return {self.p99_ms, self.throughput, self.size_mb, self.memory_mb} == {None}

    def check_measurable(self, *, served: bool, memory: bool, requests: int | None) -> None:
        """Before anything is measured: a limit that cannot be held against a number must not pass.

        Args:
            served: whether a server is measured.
            memory: whether the server's memory is measured.
            requests: how many are to be counted in each measurement; None for as many as the limits need.

        Raises:
            DferDeployError: a limit is about what is not measured.
        """
        require(
            self.p99_ms is None or requests is None or counted(requests, self.concurrency) >= REQUESTS_FOR_P99,
            f"the policy limits p99_ms, and of {requests} requests the 99th percentile is the largest latency; give "
            f"--requests {REQUESTS_FOR_P99} or more, or leave it away",
        )
        require(
            served or (self.p99_ms is None and self.throughput is None),
            "the policy limits what is served, and no server is measured; leave --runtime away or add --runtime triton",
        )
        require(
            (served and memory) or self.memory_mb is None,
            "the policy limits memory_mb, which is measured only of an embedded server that bench itself starts; leave "
            "--url away, or take the limit out of the policy",
        )

    def failures(self, result: BenchResult, *, size_mb: float, memory_mb: float | None) -> list[str]:
        """One sentence for each limit that a measurement leaves.

        Args:
            result: the measurement.
            size_mb: of the bundle.
            memory_mb: of the server; None where it was not measured, which leaves every limit.
        """
        served = next((one for one in result.served if one.concurrency == self.concurrency), None)
        found = (
            ("p99_ms", None if served is None else served.median("p99_ms"), self.p99_ms),
            ("memory_mb", memory_mb, self.memory_mb),
            ("size_mb", size_mb, self.size_mb),
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


@dataclass(frozen=True)
class Policy:
    """Both commands' limits; a missing table limits nothing beyond the defaults."""

    verify: VerifyPolicy = VerifyPolicy()
    bench: BenchPolicy = BenchPolicy()


def policy_from_toml(path: Path) -> Policy:
    """Reads a policy.

    Raises:
        DferDeployError: the file is missing, no TOML, or a limit is unknown, has the wrong type or cannot be.
    """
    try:
        require(path.stat().st_size <= _MAX_BYTES, f"{path} has over {_MAX_BYTES} bytes, which no policy has")
        return spec_from_dict(Policy, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DferDeployError(f"{path} cannot be read ({error.strerror}); expected a policy in TOML") from error
    except (ValueError, RecursionError) as error:  # TOML's own and Unicode's errors; tables in tables in tables
        raise DferDeployError(f"{path} is no TOML file ({error}); correct it") from error
