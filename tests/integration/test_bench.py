"""Real perf_analyzer against a real server, and the commands around them."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.measurement.bench_result import ratio, spread


@pytest.mark.usefixtures("environment")
def test_bench_measures_everything_in_one_run(
    cli: Any, bundle: Bundle, own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_deploy.measurement.bench._SECONDS_PER_MEASUREMENT", 0.2)
    result = cli(
        "bench", bundle.path, "--checkpoint", own_checkpoint, "--concurrency", "1,3", "--rounds", 2, "--requests", 20,
        "--json", tmp_path / "b.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "b.json").read_text())
    assert [c["name"] for c in report["in_process"]] == ["onnxruntime fp32", "PyTorch fp32 cpu"]
    for contestant in report["in_process"]:
        assert len(contestant["throughput"]) == 2
        mean_ms = sum(contestant["latency_ms"]) / len(contestant["latency_ms"])
        # One clip at a time: the inverse of the mean latency lies between the throughputs of the rounds.
        assert min(contestant["throughput"]) <= 1000 / mean_ms * 1.001
        assert max(contestant["throughput"]) >= 1000 / mean_ms * 0.999
    assert [served["concurrency"] for served in report["served"]] == [1, 3]
    for served in report["served"]:
        assert len(served["rounds"]) == 2
        for load in served["rounds"]:
            # Little's law: the requests in flight are throughput times latency.
            in_flight = load["throughput"] * load["avg_ms"] / 1000
            assert in_flight == pytest.approx(served["concurrency"], rel=0.35)


@pytest.mark.usefixtures("environment")
def test_predict_gives_the_same_in_process_and_over_both_protocols(
    cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path
) -> None:
    clips = [clip_list.parent / f"{index:03d}" for index in range(3)]
    answers = {}
    with served_bundle(bundle) as endpoints:
        for name, where in (
            ("in process", ("--bundle", bundle.path)),
            ("grpc", ("--url", endpoints.grpc_url)),
            ("http", ("--url", endpoints.http_url)),
        ):
            result = cli("predict", *where, *clips, "--json", tmp_path / "p.json")
            assert result.exit_code == 0, result.output
            answers[name] = json.loads((tmp_path / "p.json").read_text())["results"]
    for name in ("grpc", "http"):
        for expected, found in zip(answers["in process"], answers[name], strict=True):
            assert found["expression"] == expected["expression"]
            assert found["logits"] == pytest.approx(expected["logits"], abs=1e-4)
            assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)


@pytest.mark.usefixtures("environment")
def test_a_policy_is_held_and_what_it_needs_is_measured(
    cli: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_deploy.measurement.bench._SECONDS_PER_MEASUREMENT", 0.02)
    policy = tmp_path / "policy.toml"
    arguments = ("bench", bundle.path, "--concurrency", 1, "--rounds", 1, "--policy", policy)
    policy.write_text("[bench]\nconcurrency = 2\np99_ms = 60000\nthroughput = 0.001\nsize_mb = 100\nmemory_mb = 10\n")
    result = cli(*arguments, "--json", tmp_path / "b.json")
    assert result.exit_code == 1, result.output
    report = json.loads((tmp_path / "b.json").read_text())
    assert [served["concurrency"] for served in report["served"]] == [1, 2]
    (failure,) = report["policy_failures"]
    assert failure.startswith("memory_mb is ")
    # A Triton with two Python models; the interpreter that runs this test does not count.
    assert 20 < report["memory_mb"] < 1500
    assert report["size_mb"] < 100
    assert report["requests"] >= 100  # 0.02 s hold far fewer
    refused = cli(*arguments, "--requests", 10)
    assert refused.exit_code == 2
    assert "of 10 requests" in refused.output
    refused = cli(*arguments, "--url", "grpc://127.0.0.1:1")
    assert refused.exit_code == 2
    assert "memory_mb" in refused.output
    policy.write_text("[bench]\nsize_mb = 100\n")
    result = cli(*arguments, "--runtime", "onnxruntime-cpu")
    assert (result.exit_code, "within the limits" in result.output) == (0, True), result.output
    policy.write_text("[bench]\nconcurrency = 1\n")
    result = cli(*arguments, "--runtime", "onnxruntime-cpu")
    assert (result.exit_code, "limits nothing here" in result.output) == (0, True), result.output
    assert "within the limits" not in result.output


def test_ratios_are_taken_round_by_round() -> None:
    assert str(spread([3.0, 1.0, 2.0])) == "2 (1–3)"
    assert ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]) == spread([2.0, 1.0, 3.0])
