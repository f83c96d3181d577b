import re
from pathlib import Path

import numpy as np
import pytest

from dfer_deploy.api.policy_file import Policy, policy_from_toml
from dfer_deploy.errors import ResultError, SettingError
from dfer_deploy.measurement.bench_policy import BenchPolicy
from dfer_deploy.measurement.bench_result import BenchResult, InProcess, Served, Subject
from dfer_deploy.triton.perf_analyzer import LoadResult
from dfer_deploy.verification.limits import LIMITS
from dfer_deploy.verification.statistics import rate
from dfer_deploy.verification.verify_policy import VerifyPolicy

SUBJECT = Subject("aa" * 32, "bb" * 32, "fp32")
EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "policy.toml"


def policy(tmp_path: Path, text: str) -> Policy:
    (tmp_path / "policy.toml").write_text(text)
    return policy_from_toml(tmp_path / "policy.toml")


def served(concurrency: int, p99_ms: tuple[float, ...], throughput: tuple[float, ...]) -> Served:
    rounds = tuple(
        LoadResult(
            concurrency=concurrency, throughput=clips, p50_ms=1, p95_ms=1, p99_ms=p99, avg_ms=1, queue_ms=0,
            compute_input_ms=0, compute_infer_ms=1, compute_output_ms=0, client_send_ms=None, client_recv_ms=None,
        )
        for p99, clips in zip(p99_ms, throughput, strict=True)
    )  # fmt: skip
    return Served("served", concurrency, rounds)


def result(*p99_ms: float, **more: float) -> BenchResult:
    return measured(served(2, p99_ms, (20,) * len(p99_ms)), **more)


def measured(*levels: Served, **more: float) -> BenchResult:
    """A result with a contestant in process beside these."""
    first = InProcess("onnxruntime fp32", (1.0,) * len(levels[0].rounds), (1.0,))
    return BenchResult("machine", SUBJECT, 100, (first,), levels, **more)


def test_a_policy_replaces_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    found = policy(tmp_path, "[verify]\nmargin = 1\nmax_flip_rate = 0.01\n").verify.limits(LIMITS["fp16"])
    assert (found.points, found.flips) == (1.0, 0.01)
    assert (found.logits, found.recall_drop) == (LIMITS["fp16"].logits, LIMITS["fp16"].recall_drop)
    assert policy(tmp_path, "").verify.limits(LIMITS["fp32"]) == LIMITS["fp32"]


def test_each_limit_of_a_policy_replaces_its_own() -> None:
    limits = VerifyPolicy(
        margin=1, max_logit_error=2, max_flip_rate=0.3, max_recall_drop=4, max_calibration_rise=5
    ).limits(LIMITS["fp32"])
    assert (limits.points, limits.logits, limits.flips, limits.recall_drop, limits.calibration_rise) == (
        1,
        2,
        0.3,
        4,
        5,
    )


def test_what_a_policy_requires_must_not_be_left_out(tmp_path: Path) -> None:
    required = policy(tmp_path, '[verify]\nrequire = ["tensorrt", "triton"]\n').verify
    required.check_compared(("onnxruntime-cuda", "tensorrt", "triton"), ())
    message = r"requires tensorrt, but only onnxruntime-cpu would be compared \(the engines are not built\); omit"
    with pytest.raises(SettingError, match=message):
        required.check_compared(("onnxruntime-cpu",), ("the engines are not built",))
    with pytest.raises(SettingError, match="expected one of onnxruntime-cpu, onnxruntime-cuda, tensorrt, triton"):
        policy(tmp_path, '[verify]\nrequire = ["triton grpc"]\n')


def test_the_example_is_a_policy_and_so_it_is_with_all_that_it_leaves_out(tmp_path: Path) -> None:
    example = policy_from_toml(EXAMPLE)
    assert example.verify.limits(LIMITS["fp32"]).recall_drop == 2
    assert not example.bench.limits_nothing
    assert BenchPolicy(concurrency=4).limits_nothing
    optional = EXAMPLE.read_text(encoding="utf-8").replace("\n# max_", "\nmax_").replace("\n# p99", "\np99")
    optional = optional.replace("\n# throughput", "\nthroughput")
    found = policy(tmp_path, optional)
    assert all(value is not None for table in (found.verify, found.bench) for value in vars(table).values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[verify]\nmargn = 1", "unknown key 'margn' in verify; did you mean 'margin'"),
        ("[verify]\nmargin = 0", "verify.margin is 0"),
        ("[verify]\nmargin = -1", "verify.margin is -1.0, expected a number of at least 0"),
        ("[verify]\nmax_flip_rate = 2", "max_flip_rate is 2.0, expected at most 1"),
        ("[verify]\nmax_flip_rate = 0", "about 3 / n; give at least that, for example 0.003 for 1000 clips"),
        ("[verify]\nmargin = 101", "verify.margin is 101.0, expected at most 100"),
        ("[verify]\nmax_logit_error = 1e40", "max_logit_error is 1e+40, expected at most 1e+39"),
        ("[verify]\nmargin = 1" + "0" * 400, "verify.margin is an integer of more than 64 bits"),
        ("[bench]\nconcurrency = 0x" + "f" * 5000, "bench.concurrency is an integer of more than 64 bits"),
        ("#" * (1 << 20) + "#", "over 1048576 bytes"),
        ("[verify]\nmargin = nan", "verify.margin is nan"),
        ("[verify]\nmax_recall_drop = inf", "verify.max_recall_drop is inf, expected a number"),
        ("[bench]\np99_ms = inf", "bench.p99_ms is inf, expected a number"),
        ("[bench]\np99_ms = '5'", "bench.p99_ms is '5', expected float"),
        ("[bench]\nconcurrency = 0", "bench.concurrency is 0"),
    ],
)
def test_a_wrong_policy_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        policy(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["[bench]\nconcurrency = [0x" + "f" * 5000 + "]", "[verify]\nmargin = " + "[" * 50_000, "[bench"]
)
def test_what_is_not_a_policy_cannot_be_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(ResultError, match="is not a TOML file"):
        policy(tmp_path, text)
    with pytest.raises(ResultError, match="cannot be read"):
        policy_from_toml(tmp_path / "none.toml")


def test_measurements_beyond_the_limits_fail() -> None:
    limits = BenchPolicy(concurrency=2, p99_ms=50, throughput=30, size_mb=10, memory_mb=100)
    assert limits.failures(result(40, 60, 70, size_mb=11.0, memory_mb=101.0)) == [
        "p99_ms is 60, at most 50 is accepted",
        "memory_mb is 101, at most 100 is accepted",
        "size_mb is 11, at most 10 is accepted",
        "throughput is 20 clips/s, at least 30 is accepted",
    ]
    assert BenchPolicy(concurrency=2, p99_ms=60, throughput=20).failures(result(60)) == []


def test_what_was_not_measured_leaves_its_limit() -> None:
    limits = BenchPolicy(concurrency=3, p99_ms=50, throughput=30, memory_mb=100)
    assert limits.failures(result(40)) == [
        "p99_ms was not measured, at most 50 is accepted",
        "memory_mb was not measured, at most 100 is accepted",
        "throughput was not measured, at least 30 is accepted",
    ]


def test_the_smallest_flip_rate_that_is_proposed_can_pass() -> None:
    assert 0 < rate(np.zeros(1000, dtype=bool)).high <= 0.003


def test_the_middle_one_of_the_rounds_at_the_policys_concurrency_counts() -> None:
    """Not the best, not the worst, not the mean, and not those with more requests in flight."""
    found = measured(served(1, (10, 90, 11), (9, 60, 10)), served(4, (70, 40, 41), (20, 31, 90)))
    for concurrency, p99_ms, throughput in ((1, 11, 10), (4, 41, 31)):
        accepted = BenchPolicy(concurrency=concurrency, p99_ms=p99_ms, throughput=throughput)
        assert accepted.failures(found) == []
        refused = BenchPolicy(concurrency=concurrency, p99_ms=p99_ms - 0.5, throughput=throughput + 0.5)
        assert len(refused.failures(found)) == 2


def test_a_limit_on_what_is_not_measured_is_refused() -> None:
    with pytest.raises(SettingError, match="no server is measured"):
        BenchPolicy(p99_ms=1).check_measurable(served=False, memory=True, requests=None)
    with pytest.raises(SettingError, match="memory_mb"):
        BenchPolicy(memory_mb=1).check_measurable(served=True, memory=False, requests=None)
    for policy in (BenchPolicy(throughput=1), BenchPolicy(memory_mb=1)):
        with pytest.raises(SettingError):
            policy.check_measurable(served=False, memory=True, requests=None)
    BenchPolicy(size_mb=1).check_measurable(served=False, memory=False, requests=None)
    BenchPolicy(p99_ms=1, throughput=1).check_measurable(served=True, memory=False, requests=None)


def test_a_p99_of_too_few_requests_is_refused() -> None:
    with pytest.raises(SettingError, match="of 99 requests the 99th percentile is the largest latency"):
        BenchPolicy(p99_ms=1).check_measurable(served=True, memory=True, requests=99)
    BenchPolicy(p99_ms=1).check_measurable(served=True, memory=True, requests=100)
    # Of many in flight more are counted.
    BenchPolicy(p99_ms=1, concurrency=32).check_measurable(served=True, memory=True, requests=50)
    BenchPolicy(throughput=1).check_measurable(served=True, memory=True, requests=8)
