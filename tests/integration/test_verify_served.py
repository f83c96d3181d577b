"""What a real Triton serves is held against PyTorch: with the command line, over both protocols.

Twelve clips are too few to decide: what is right ends with UNDECIDED.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from tiny import write_frames

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.errors import DferDeployError, ExitCode


@pytest.mark.usefixtures("environment")
def test_what_was_exported_is_what_is_served(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    result = cli(
        "verify", bundle.path, "--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json"
    )
    assert result.exit_code == ExitCode.UNDECIDED, result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["passed"]
    assert report["clips"] == 12
    assert [c["name"] for c in report["comparisons"]] == ["onnxruntime fp32", "triton grpc", "triton http"]
    for comparison in report["comparisons"]:
        assert 0 < comparison["max_logit_difference"] < 1e-3
        assert comparison["flips"] == []
        assert comparison["war"] == report["truth"]["war"]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("graph", ["temporal_head", "image_encoder"])
def test_a_model_whose_weights_moved_by_one_percent_fails(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path, graph: str
) -> None:
    changed = planted.drifted(bundle, tmp_path / "changed", graph, 0.01)
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    result = cli("verify", changed, *arguments)
    assert result.exit_code == 1
    assert "not verified" in result.output
    failures = [c["failures"] for c in json.loads((tmp_path / "v.json").read_text())["comparisons"]]
    assert len(failures) == 3
    assert all(failures), "in process and served over both protocols, all must be caught"
    head_is_blamed = any("temporal head" in sentence for sentence in failures[0])
    assert head_is_blamed == (graph == "temporal_head")


@pytest.mark.usefixtures("environment")
def test_a_server_whose_fp16_head_moved_fails_though_the_graphs_are_right(
    cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    """What counts is what is served: only the copy in the repository is changed, by one percent."""
    assert cli("export", own_checkpoint, "-o", tmp_path / "b", "--precision", "fp16").exit_code == 0
    right, moved = open_bundle(tmp_path / "b"), functools.partial(planted.drift, relative=0.01)
    changed = planted.planted_where_served(right, tmp_path / "changed", "dfer_temporal_head", moved)
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    assert cli("verify", changed.path, *arguments).exit_code == 1
    in_process, *served = json.loads((tmp_path / "v.json").read_text())["comparisons"]
    assert not in_process["failures"]
    assert any("a logit against onnxruntime in process" in failure for one in served for failure in one["failures"])


@pytest.mark.usefixtures("environment")
def test_probabilities_that_do_not_follow_from_the_logits_fail(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    """`predict` shows probabilities, so logits alone prove nothing."""
    changed = planted.planted(bundle, tmp_path / "changed", "temporal_head", planted.negate_probabilities)
    result = cli("verify", changed.path, "--checkpoint", own_checkpoint, "--data", clip_list)
    assert result.exit_code == 1
    assert result.output.count("a probability against the softmax of its logits differs") == 3


@pytest.mark.usefixtures("environment")
def test_a_server_that_answers_no_stream_fails_and_keeps_the_results(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise DferDeployError("there is no such model")

    monkeypatch.setattr("dfer_deploy.api.verify_bundle.ensemble_answers", refused)
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    assert cli("verify", bundle.path, *arguments).exit_code == ExitCode.GATE_FAILED
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["failures"] == ["streams or encoded images: there is no such model"]
    assert report["ensembles"] == {"dfer_stream": None, "dfer_encoded": None, "dfer_encoded_stream": None}


@pytest.mark.usefixtures("environment")
def test_the_reference_implementations_own_checkpoint_is_served(cli: Any, shared_data: Path, tmp_path: Path) -> None:
    checkpoint = shared_data / "a_dfew7_end_specific.pth"
    answers = np.load(shared_data / "a_dfew7_end_specific.npz")
    lines = []
    for index, (clip, label) in enumerate(zip(answers["frames"], answers["labels"], strict=True)):
        write_frames(tmp_path / "clips" / f"{index:02d}", clip.repeat(8, axis=1).repeat(8, axis=2))
        lines.append(f"clips/{index:02d} 16 {label}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    assert cli("export", checkpoint, "-o", tmp_path / "b").exit_code == 0
    result = cli("verify", tmp_path / "b", "--checkpoint", checkpoint, "--data", tmp_path / "list.txt")
    assert result.exit_code == ExitCode.UNDECIDED, result.output
    assert "at the end: reproduced" in result.output
    videos = [shared_data / "videos" / name for name in ("single_face.mp4", "WolfgangLanger_Pexels.mp4")]
    assert cli("predict", "--bundle", tmp_path / "b", *videos).exit_code == 0


@pytest.mark.usefixtures("environment")
def test_a_running_server_is_asked_over_the_protocols_that_are_named(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    arguments = ("verify", bundle.path, "--checkpoint", own_checkpoint, "--data", clip_list)
    with served_bundle(bundle) as endpoints:
        urls = ("--url", endpoints.http_url, "--url", endpoints.grpc_url)
        assert cli(*arguments, *urls, "--json", tmp_path / "v.json").exit_code == ExitCode.UNDECIDED
        report = json.loads((tmp_path / "v.json").read_text())
        assert [c["name"] for c in report["comparisons"]] == ["onnxruntime fp32", "triton http", "triton grpc"]
        assert set(report["ensembles"]) == {"dfer_stream", "dfer_encoded", "dfer_encoded_stream"}
        twice = cli(*arguments, "--url", endpoints.grpc_url, "--url", endpoints.grpc_url)
        assert twice.exit_code == ExitCode.WRONG_INPUT
        assert "triton grpc" in twice.output
