"""Errors planted in right bundles, one at a time: what the gate says of each, and which block it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
from encoded_images import encoded
from PIL import Image
from tiny import clips_of, varied_model, write_frames

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.client import Client
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import ExitCode
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.specs import Precision
from dfer_deploy.verification import ensembles
from dfer_deploy.verification.ensembles import ensemble_answers
from dfer_deploy.verification.limits import LIMITS
from dfer_deploy.verification.rounding import rounding_costs

POLICY = Path(__file__).resolve().parents[2] / "docs" / "policy.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that answers several classes, its own answers as labels, and a bundle in both precisions."""
    folder = tmp_path_factory.mktemp("planted")
    model, clips = varied_model(), clips_of(4)
    answers = TorchPredictor(model).predict(clips).logits.argmax(axis=1)
    assert len(set(answers.tolist())) > 1
    save_checkpoint(folder / "a.pt", model, {})
    for precision in ("fp32", "fp16"):
        export_to_folder(folder / "a.pt", folder / precision, ExportOptions("embedded", precision=precision))
    for index, clip in enumerate(clips):
        write_frames(folder / f"{index}", clip)
    (folder / "list.txt").write_text("".join(f"{index} 16 {label}\n" for index, label in enumerate(answers)))
    # The errors are in the graphs, so most tests need no server.
    policy = POLICY.read_text(encoding="utf-8").replace('\nrequire = ["triton"]', "")
    (folder / "policy.toml").write_text(policy, encoding="utf-8")
    return folder


TABLE: list[tuple[Callable[..., None], str, dict[str, str | None]]] = [
    (planted.swap_classes, "temporal_head", {"fp32": "classifier", "fp16": "classifier"}),
    (planted.drift, "image_encoder", {"fp32": "patch_embedding", "fp16": "patch_embedding"}),
    (planted.drift, "temporal_head", {"fp32": "head.0", "fp16": "head.0"}),
    (planted.add_mean_and_std, "image_encoder", {"fp32": "patch_embedding", "fp16": "patch_embedding"}),
    (planted.swap_channels, "image_encoder", {"fp32": "patch_embedding", "fp16": "patch_embedding"}),
    (planted.reverse_time, "image_encoder", {"fp32": "patch_embedding", "fp16": "patch_embedding"}),
    # Beside fp16 products, LayerNorm in fp16 costs no more than rounding does: that passes.
    (planted.halve_layer_norm, "image_encoder", {"fp32": "encoder.0", "fp16": None}),
]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("change", "graph", "blamed"), TABLE, ids=[f"{c.__name__}-{g}" for c, g, _ in TABLE])
def test_the_gate_fails_for_a_planted_error_and_names_its_block(
    cli: Any,
    folder: Path,
    tmp_path: Path,
    change: Callable[..., None],
    graph: str,
    blamed: dict[str, str | None],
    precision: Precision,
) -> None:
    wrong = planted.planted(open_bundle(folder / precision), tmp_path / "b", graph, change)
    arguments = (
        "--data",
        folder / "list.txt",
        "--in-process",
        "--policy",
        folder / "policy.toml",
        "--json",
        tmp_path / "v.json",
    )
    result = cli("verify", wrong.path, "--checkpoint", folder / "a.pt", *arguments)
    block = blamed[precision]
    report = json.loads((tmp_path / "v.json").read_text())
    if block is None:
        assert result.exit_code == ExitCode.UNDECIDED, result.output
        return
    assert result.exit_code == ExitCode.GATE_FAILED, result.output
    assert report["failures"][0].startswith(f"{block} leaves its tolerance: given right input its error is ")


def test_a_saved_baseline_knows_what_rounding_costs(cli: Any, folder: Path, tmp_path: Path) -> None:
    """Where there is no PyTorch, and for what is served, the two graphs are held against it instead of the blocks."""
    right = open_bundle(folder / "fp16")
    arguments = ("--data", folder / "list.txt", "--in-process")
    saved = ("--checkpoint", folder / "a.pt", "--save-baseline", tmp_path / "b.npz")
    assert cli("verify", right.path, *arguments, *saved).exit_code == ExitCode.UNDECIDED
    arguments = (
        *arguments,
        "--baseline",
        tmp_path / "b.npz",
        "--policy",
        folder / "policy.toml",
        "--json",
        tmp_path / "v.json",
    )
    assert cli("verify", right.path, *arguments).exit_code == ExitCode.UNDECIDED
    for change, graph, part in (
        (planted.drift, "temporal_head", "logits of the temporal head"),
        (planted.drift, "image_encoder", "frame features"),
        (planted.swap_channels, "image_encoder", "frame features"),
        (planted.reverse_time, "image_encoder", "frame features"),
    ):
        wrong = planted.planted(right, tmp_path / f"{change.__name__}-{graph}", graph, change)
        assert cli("verify", wrong.path, *arguments).exit_code == ExitCode.GATE_FAILED
        failures = json.loads((tmp_path / "v.json").read_text())["failures"]
        assert failures[0].startswith(f"onnxruntime fp16: {part} differ by ")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_streams_and_encoded_images_are_held_against_the_clips(
    cli: Any, folder: Path, tmp_path: Path, precision: Precision
) -> None:
    """Every ensemble is asked: the window of the streams alone forgets the frames before the newest."""
    right = open_bundle(folder / precision)
    arguments = ("--data", folder / "list.txt", "--checkpoint", folder / "a.pt", "--json", tmp_path / "v.json")
    good = cli("verify", right.path, *arguments)
    assert good.exit_code == ExitCode.UNDECIDED, good.output
    assert "streams and encoded images differ from dfer by at most " in good.output
    differences = json.loads((tmp_path / "v.json").read_text())["ensembles"]
    assert set(differences) == {"dfer_stream", "dfer_encoded", "dfer_encoded_stream"}
    assert differences["dfer_encoded"] < 1e-3
    assert differences["dfer_encoded_stream"] == differences["dfer_stream"] < (1e-3 if precision == "fp32" else 0.1)

    wrong = planted.planted_where_served(right, tmp_path / "b", "dfer_window", planted.only_the_newest)
    found = cli("verify", wrong.path, *arguments, "--report", tmp_path / "r.html")
    assert found.exit_code == ExitCode.GATE_FAILED, found.output
    assert "failed: dfer_stream" in found.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert not any(comparison["failures"] for comparison in report["comparisons"])
    assert report["ensembles"]["dfer_encoded"] < 1e-3 < 0.1 < report["ensembles"]["dfer_stream"]
    assert len(report["failures"]) == 12, "four clips: frames before the window is full and when it is, and images"
    assert report["failures"][0].startswith(
        "dfer_stream: 0 after 8 frames: a logit from dfer_temporal_head's differs by "
    )
    assert report["failures"][1].startswith("dfer_stream: 0 after 16 frames: a logit from dfer_temporal_head's ")
    assert report["failures"][0] in (tmp_path / "r.html").read_text().replace("&#39;", "'")


@pytest.mark.usefixtures("environment")
def test_probabilities_and_images_of_other_ensembles_are_held_against_the_clips_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = open_bundle(folder / "fp32")
    clips = [(Annotation("a", folder / "0", 16, 0), clips_of(1)[0])]
    asked = (right.contract, clips, LIMITS["fp32"], rounding_costs(varied_model(), clips_of(1))["fp32"])
    wrong = planted.planted_where_served(right, tmp_path / "b", "dfer_temporal_head", planted.negate_probabilities)
    with served_bundle(wrong, quiet=True) as endpoints, Client(endpoints.http_url) as client:
        found = ensemble_answers(client, *asked, same_runtime=True)
    with served_bundle(right, quiet=True) as endpoints, Client(endpoints.http_url) as client:
        monkeypatch.setattr(ensembles, "_png", lambda frame: encoded(Image.fromarray(255 - frame), "PNG"))
        other = ensemble_answers(client, *asked, same_runtime=True)
    assert found.differences["dfer_stream"] < 1e-3
    assert [failure.partition(" differs by ")[0] for failure in found.failures] == [
        f"{name}: a after {frames} frames: a probability from the softmax of its logits"
        for name, frames in (("dfer_stream", 8), ("dfer_stream", 16), ("dfer_encoded_stream", 16), ("dfer_encoded", 16))
    ]
    assert other.differences["dfer_encoded"] > 0.1
    assert other.failures[-1].startswith("dfer_encoded: a after 16 frames: a logit from dfer's differs by ")


@pytest.mark.usefixtures("environment")
def test_a_stream_whose_answers_are_not_finite_fails_and_keeps_the_results(
    cli: Any, folder: Path, tmp_path: Path
) -> None:
    wrong = planted.planted_where_served(
        open_bundle(folder / "fp32"), tmp_path / "b", "dfer_window", planted.never_finite
    )
    arguments = ("--data", folder / "list.txt", "--checkpoint", folder / "a.pt", "--json", tmp_path / "v.json")
    result = cli("verify", wrong.path, *arguments)
    assert result.exit_code == ExitCode.GATE_FAILED, result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["ensembles"]["dfer_stream"] is None
    assert report["failures"][0].startswith("streams or encoded images: the server at ")
    assert report["comparisons"]


@pytest.mark.usefixtures("environment")
def test_a_server_of_another_export_is_not_verified_as_this_one(cli: Any, folder: Path) -> None:
    arguments = ("--data", folder / "list.txt", "--checkpoint", folder / "a.pt", "--runtime", "triton")
    with served_bundle(open_bundle(folder / "fp32"), quiet=True) as endpoints:
        results = [
            cli("verify", folder / "fp16", *arguments, "--url", endpoints.grpc_url),
            cli("bench", folder / "fp16", "--rounds", 1, "--url", endpoints.grpc_url),
        ]
    for result in results:
        assert result.exit_code == ExitCode.WRONG_INPUT, result.output
        assert "the server says that its graphs have the SHA-256" in " ".join(result.output.split())


class _FramesAreOthersAlone:
    """A client whose server encodes a frame otherwise when it comes alone."""

    def __init__(self, client: Client, error: float) -> None:
        self._client, self._error = client, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def encode(self, frames: Any) -> Any:
        return self._client.encode(frames) * (1 + self._error * (frames.shape[1] == 1))


@pytest.mark.usefixtures("environment")
def test_features_of_single_frames_are_held_against_what_rounding_costs(folder: Path) -> None:
    right = open_bundle(folder / "fp16")
    clips = [(Annotation("a", folder / "0", 16, 0), clips_of(1)[0])]
    asked = (right.contract, clips, LIMITS["fp16"], rounding_costs(varied_model(), clips_of(1))["fp16"])
    with served_bundle(right, quiet=True) as endpoints, Client(endpoints.grpc_url) as client:
        assert ensemble_answers(client, *asked, same_runtime=True).failures == ()
        wrong: Any = _FramesAreOthersAlone(client, 0.05)
        failures = ensemble_answers(wrong, *asked, same_runtime=True).failures
    assert failures[-1].startswith("dfer_stream, one frame at a time: frame features differ by ")


@pytest.mark.usefixtures("environment")
def test_a_wrong_model_in_the_repository_is_not_blamed_on_a_block(cli: Any, folder: Path, tmp_path: Path) -> None:
    wrong = planted.planted_where_served(
        open_bundle(folder / "fp32"), tmp_path / "b", "dfer_temporal_head", planted.swap_classes
    )
    arguments = ("--data", folder / "list.txt", "--checkpoint", folder / "a.pt", "--json", tmp_path / "v.json")
    result = cli("verify", wrong.path, *arguments)
    assert result.exit_code == ExitCode.GATE_FAILED, result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert [bool(comparison["failures"]) for comparison in report["comparisons"]] == [False, True, True]
    where = "the graphs in onnx/ are right, and what the model repository serves differs from them"
    assert f"where: {where}" in result.output
    assert report["localisation"]["where"] == where
    assert "most error comes from" not in result.output
