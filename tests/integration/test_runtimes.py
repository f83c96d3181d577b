"""The choice of runtimes through the command line, on a machine without a GPU as with one."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.errors import ExitCode
from dfer_deploy.hardware import ask_cuda_driver


@pytest.fixture(scope="module")
def engineless(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For the target tensorrt, not built."""
    from dfer_deploy.export.export_options import ExportOptions
    from dfer_deploy.export.pipeline import export_to_folder

    options = ExportOptions("tensorrt", ServingOptions(max_batch_size=8))
    return export_to_folder(own_checkpoint, tmp_path_factory.mktemp("engineless") / "tiny", options)[0]


@pytest.mark.skipif(bool(ask_cuda_driver().gpus), reason="there is a GPU")
def test_without_engines_the_graphs_are_verified_and_the_plans_are_said_not_to_be(
    cli: Any, engineless: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    result = cli("verify", engineless.path, *arguments)
    assert result.exit_code == ExitCode.UNDECIDED, result.output
    for what in ("TensorRT in this process", "Triton"):
        sentence = f"not verified: {what}, since the engines are not built; build them with: dfer-deploy build"
        assert sentence in result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert [c["name"] for c in report["comparisons"]] == ["onnxruntime fp16"]
    assert set(report["left_out"]) == {"TensorRT in this process", "Triton"}


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_an_impossible_choice_ends_with_the_reason(
    cli: Any, engineless: Bundle, own_checkpoint: Path, clip_list: Path, command: str
) -> None:
    arguments = ("--data", clip_list) if command == "verify" else ()
    result = cli(command, engineless.path, "--checkpoint", own_checkpoint, *arguments, "--runtime", "tensorrt")
    assert result.exit_code == 2
    assert "are not built; build them with: dfer-deploy build" in result.output


def test_bench_needs_no_server_where_none_is_chosen(
    cli: Any, engineless: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_deploy.measurement.bench._SECONDS_PER_MEASUREMENT", 0.1)
    chosen = ("--runtime", "onnxruntime-cpu", "--rounds", 2, "--json", tmp_path / "b.json")
    result = cli("bench", engineless.path, *chosen)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "b.json").read_text())
    assert [c["name"] for c in report["in_process"]] == ["onnxruntime fp16"]
    assert report["served"] == []
    assert "perf_analyzer" not in result.output
    assert cli("bench", engineless.path, "--runtime", "triton").exit_code == 2


def test_predict_takes_a_runtime(cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path) -> None:
    clip = clip_list.parent / "000"
    result = cli("predict", "--bundle", bundle.path, "--runtime", "onnxruntime-cpu", clip, "--json", tmp_path / "p")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "p").read_text())["answered_by"] == "onnxruntime fp32"
    assert cli("predict", "--bundle", bundle.path, "--runtime", "tensorrt", clip).exit_code == 2
    assert cli("predict", "--url", "grpc://127.0.0.1:1", "--runtime", "tensorrt", clip).exit_code == 2
