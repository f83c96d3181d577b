"""The commands on a GPU machine, from the checkpoint to the served plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_deploy.api.serving import installation_for, served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.runtimes.available import usual_runtimes
from dfer_deploy.runtimes.onnxruntime_predictor import open_session
from dfer_deploy.runtimes.tensorrt_predictor import TensorRtPredictor

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def onnxruntime(gpu_bundle: Bundle) -> str:
    """The best that onnxruntime can do here; CUDA needs libraries (cuDNN) that may be absent."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    try:
        open_session(gpu_bundle.temporal_head_onnx, 1, "cuda")
    except DferDeployError:
        return "onnxruntime-cpu"
    return "onnxruntime-cuda"


@pytest.fixture(scope="module")
def url(gpu_bundle: Bundle) -> Iterator[str]:
    """A Triton that serves the plans, by a local tritonserver or Docker."""
    try:
        installation = installation_for(gpu_bundle)
    except DferDeployError as error:
        pytest.skip(f"this machine has no server for the plans: {error}")
    with served_bundle(gpu_bundle, installation) as endpoints:
        yield endpoints.grpc_url


def test_build_records_what_was_built_and_builds_nothing_twice(cli: Any, gpu: str, gpu_bundle: Bundle) -> None:
    built = gpu_bundle.engines
    assert built is not None
    assert built.builder.module == "tensorrt"
    assert built.device is not None
    assert built.device.name == gpu
    assert {record.precision for record in built.engines.values()} == {"fp16"}
    plans = {name: (gpu_bundle.path / record.plan).stat().st_mtime_ns for name, record in built.engines.items()}
    result = cli("build", gpu_bundle.path)
    assert result.exit_code == 0, result.output
    assert plans == {name: (gpu_bundle.path / record.plan).stat().st_mtime_ns for name, record in built.engines.items()}


def test_doctor_finds_the_machine_able(cli: Any, gpu: str, gpu_bundle: Bundle) -> None:
    assert cli("doctor").exit_code == 0
    result = cli("doctor", gpu_bundle.path)
    assert gpu in result.output
    assert result.exit_code in (0, 1)  # 1 where no server is installed
    assert "built" in result.output


def test_engines_are_used_where_nobody_chose(gpu_bundle: Bundle, onnxruntime: str) -> None:
    usual = usual_runtimes(gpu_bundle)
    assert usual.runtimes == (onnxruntime, "tensorrt"), usual.no_tensorrt


def test_verify_holds_the_engines_against_pytorch(
    cli: Any, gpu_bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    result = cli("verify", gpu_bundle.path, *arguments, "--in-process", "--batch-size", 5)
    assert result.exit_code == ExitCode.UNDECIDED, result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert [c["name"] for c in report["comparisons"]][-1] == "TensorRT fp16"
    assert report["truth"]["name"] == "PyTorch fp32 cuda"
    assert set(report["left_out"]) == {"Triton"}
    assert all(c["max_logit_difference"] > 0 for c in report["comparisons"])


def test_bench_measures_the_engines(
    cli: Any, gpu_bundle: Bundle, onnxruntime: str, own_checkpoint: Path, tmp_path: Path
) -> None:
    chosen = ("--runtime", onnxruntime, "--runtime", "tensorrt", "--checkpoint", own_checkpoint)
    result = cli("bench", gpu_bundle.path, *chosen, "--rounds", 2, "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "b.json").read_text())
    names = [contestant["name"] for contestant in report["in_process"]]
    assert names[1:] == ["TensorRT fp16", "PyTorch fp32 cuda"]
    assert all(throughput > 0 for contestant in report["in_process"] for throughput in contestant["throughput"])


def test_predict_asks_the_engines(cli: Any, gpu_bundle: Bundle, clip_list: Path, tmp_path: Path) -> None:
    result = cli("predict", "--bundle", gpu_bundle.path, clip_list.parent / "000", "--json", tmp_path / "p.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "p.json").read_text())["answered_by"] == "TensorRT fp16"


def test_version_compatible_engines_run_their_code_only_when_allowed(
    cli: Any, trt: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    path, clip = tmp_path / "b", clip_list.parent / "000"
    assert cli("export", own_checkpoint, "-o", path, "--target", "tensorrt").exit_code == 0
    assert cli("build", path, "--version-compatible").exit_code == 0
    refused = cli("predict", "--bundle", path, "--runtime", "tensorrt", clip)
    assert refused.exit_code == 2
    assert "--allow-host-code" in refused.output
    allowed = cli("predict", "--bundle", path, "--runtime", "tensorrt", "--allow-host-code", clip)
    assert allowed.exit_code == 0, allowed.output


def test_triton_serves_the_plans_that_run_in_process(gpu_bundle: Bundle, url: str) -> None:
    clips = drawn_clips(4, gpu_bundle.spec.clip.vision.image_size)
    with TensorRtPredictor.from_bundle(gpu_bundle) as local, TritonPredictor(url, gpu_bundle.contract) as served:
        for batch in (1, 2, 4):
            expected, answer = local.predict(clips[:batch]), served.predict(clips[:batch])
            # The same plans; dynamic batching may run them at another batch, whose kernels add up in another order.
            assert np.abs(answer.logits - expected.logits).max() <= 0.1
            np.testing.assert_array_equal(answer.logits.argmax(axis=1), expected.logits.argmax(axis=1))


def test_verify_and_bench_ask_the_server(
    cli: Any, gpu_bundle: Bundle, own_checkpoint: Path, clip_list: Path, url: str, tmp_path: Path
) -> None:
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    verified = cli("verify", gpu_bundle.path, *arguments, "--url", url)
    assert verified.exit_code == ExitCode.UNDECIDED, verified.output
    names = [c["name"] for c in json.loads((tmp_path / "v.json").read_text())["comparisons"]]
    assert names[1:] == ["TensorRT fp16", "triton grpc"]


@pytest.mark.usefixtures("environment")
def test_bench_loads_the_server(cli: Any, gpu_bundle: Bundle, url: str, tmp_path: Path) -> None:
    loaded = ("--concurrency", "1,8", "--rounds", 2, "--requests", 50, "--json", tmp_path / "b.json")
    result = cli("bench", gpu_bundle.path, "--url", url, *loaded)
    assert result.exit_code == 0, result.output
    assert [served["concurrency"] for served in json.loads((tmp_path / "b.json").read_text())["served"]] == [1, 8]


@pytest.mark.usefixtures("environment")
def test_selftest_walks_the_whole_way(
    cli: Any, gpu: str, gpu_bundle: Bundle, own_checkpoint: Path, clip_list: Path, url: str, tmp_path: Path
) -> None:
    del url  # it serves by itself; this says only that it can
    report = tmp_path / "report.md"
    given = ("--checkpoint", own_checkpoint, "--data", clip_list, "-o", report)
    result = cli("selftest", "--gpu", gpu_bundle.path, *given)
    assert result.exit_code == 0, result.output
    assert gpu in report.read_text(encoding="utf-8")
