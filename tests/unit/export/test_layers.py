"""Blocks against PyTorch: a fault that is planted in one of them is found there and nowhere else."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny import clips_of, overflow_in_fp16, tiny_model

from dfer_deploy.errors import DferDeployError
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.layers import localise
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.parity import measure_parity
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.specs import Precision, contract_for


def _export(model: DferClip, precision: Precision, folder: Path, *keep_fp32: str) -> tuple[Path, Path]:
    contract = contract_for(model.spec)
    paths = folder / "encoder.onnx", folder / "head.onnx"
    with torch.inference_mode():
        graphs = ImageEncoderGraph(model, precision, keep_fp32), TemporalHeadGraph(model, precision, keep_fp32)
    for graph, spec, path in zip(graphs, (contract.image_encoder, contract.temporal_head), paths, strict=True):
        onnx_from_graph(graph, spec, path)
    return paths


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return _export(tiny_model(depth=2), "fp32", tmp_path_factory.mktemp("fp32"))


NAMES = ["patch_embedding", "encoder.0", "encoder.1", "projection", "head.0", "head.1", "classifier"]


def test_right_graphs_are_within_every_tolerance_and_stay_as_they_are(exported: tuple[Path, Path]) -> None:
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in exported]
    found = localise(tiny_model(depth=2), *exported, clips_of(2), "fp32")
    assert [layer.block for layer in found.layers] == NAMES
    assert found.first is None
    assert {layer.precision for layer in found.layers} == {"fp32"}
    assert all(0 < layer.own < 2e-6 and layer.cosine > 0.999999 and layer.logits < 1e-4 for layer in found.layers)
    assert found.needed == {"fp32": max(layer.own for layer in found.layers)}
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in exported] == before


def _plant(model: DferClip, change: Callable[[DferClip], torch.Tensor], factor: float) -> DferClip:
    with torch.no_grad():
        change(model).mul_(factor)
    return model


FAULTS: list[tuple[str, Callable[[DferClip], torch.Tensor], float]] = [
    ("patch_embedding", lambda m: m.image_encoder.conv1.weight, 1.005),
    ("encoder.0", lambda m: m.image_encoder.transformer.resblocks[0].mlp.c_proj.weight, 1.005),
    ("encoder.1", lambda m: m.image_encoder.transformer.resblocks[1].attn.out_proj.weight, 1.005),
    ("projection", lambda m: m.image_encoder.proj, 1.005),
    ("head.1", lambda m: m.temporal_net.blocks[1].mlp_out.weight, 1.005),
    ("classifier", lambda m: m.prompt_learner.ctx, 1.2),
]


@pytest.mark.parametrize(("block", "change", "factor"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_weights_that_moved_by_half_a_percent_are_found_in_their_block(
    exported: tuple[Path, Path], block: str, change: Callable[[DferClip], torch.Tensor], factor: float
) -> None:
    found = localise(_plant(tiny_model(depth=2), change, factor), *exported, clips_of(1), "fp32")
    assert [layer.block for layer in found.layers if not layer.within] == [block]
    assert found.first is not None
    assert str(found).startswith(f"{block} is the first block that fails")
    # Of all errors this one reaches the logits, and the blocks after it inherit it.
    assert max(found.layers, key=lambda layer: layer.logits).block == block
    at = NAMES.index(block)
    assert all(layer.relative < 1e-5 for layer in found.layers[:at])
    assert all(layer.relative > 1e-5 for layer in found.layers[at:])


def test_an_overflow_is_told_and_mended_by_keeping_its_block(tmp_path: Path) -> None:
    model = overflow_in_fp16(tiny_model(), "encoder.1")
    files = _export(model, "fp16", tmp_path)
    found = localise(model, *files, clips_of(1), "fp16")
    assert [layer.block for layer in found.layers if not layer.within] == ["encoder.1"]
    assert str(found) == "encoder.1 is the first block that fails: given right input it answers NaN or infinity"
    assert [np.isinf(layer.relative) for layer in found.layers] == [False, False, True, True, True, True]
    with pytest.raises(DferDeployError, match=r"encoder\.1 is the first .* export with --keep-fp32 encoder\.1 or"):
        measure_parity(model, *files, "fp16")

    files = _export(model, "fp16", tmp_path, "encoder.1")
    assert measure_parity(model, *files, "fp16", ("encoder.1",))["logit_error"] < 0.05
    mended = localise(model, *files, clips_of(1), "fp16", ("encoder.1",))
    assert mended.first is None
    kept = {layer.block: (layer.precision, layer.own < 2e-6) for layer in mended.layers}
    assert kept["encoder.1"] == kept["classifier"] == ("fp32", True)
    assert kept["encoder.0"] == kept["head.0"] == ("fp16", False)


def test_foreign_graphs_are_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model = onnx.load(exported[1])
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    norm.op_type = "Identity"
    onnx.save(model, tmp_path / "head.onnx")
    with pytest.raises(DferDeployError, match=r"has 3 LayerNormalization nodes, expected 4\); export the bundle again"):
        localise(tiny_model(depth=2), exported[0], tmp_path / "head.onnx", clips_of(1), "fp32")
