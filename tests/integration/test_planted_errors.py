"""Errors planted in right bundles, one at a time: what the gate says of each, and which block it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
from tiny import clips_of, varied_model, write_frames

from dfer_deploy.bundle import open_bundle
from dfer_deploy.checkpoint import save_checkpoint
from dfer_deploy.errors import ExitCode
from dfer_deploy.export.pipeline import ExportOptions, export_bundle
from dfer_deploy.runtimes.torch import TorchPredictor
from dfer_deploy.specs import Precision

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
        export_bundle(folder / "a.pt", folder / precision, ExportOptions("embedded", precision=precision))
    for index, clip in enumerate(clips):
        write_frames(folder / f"{index}", clip)
    (folder / "list.txt").write_text("".join(f"{index} 16 {label}\n" for index, label in enumerate(answers)))
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
    arguments = ("--data", folder / "list.txt", "--in-process", "--policy", POLICY, "--json", tmp_path / "v.json")
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
    arguments = (*arguments, "--baseline", tmp_path / "b.npz", "--policy", POLICY, "--json", tmp_path / "v.json")
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
