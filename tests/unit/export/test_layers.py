"""Blocks against PyTorch: a fault that is planted in one of them is found there and nowhere else."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from planted import drift, halve_layer_norm
from tiny import clips_of, overflow_in_fp16, tiny_model

from dfer_deploy.checkpoints.checkpoint import load_checkpoint
from dfer_deploy.errors import BundleError
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.layers import localise
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.parity import measure_parity
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.specs import Precision, contract_for
from dfer_deploy.verification.blocks import BlockComparison, BlockError


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
NAMES_OF_ONE_HEAD = [name for name in NAMES if name != "head.1"]


def test_right_graphs_are_within_every_tolerance_and_stay_as_they_are(exported: tuple[Path, Path]) -> None:
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in exported]
    found = localise(tiny_model(depth=2), *exported, clips_of(2), "fp32")
    assert [layer.block for layer in found.layers] == NAMES
    assert found.failing == ()
    assert {layer.precision for layer in found.layers} == {"fp32"}
    assert all(0 < layer.own < 2e-6 and layer.cosine > 0.999999 and layer.logits < 1e-4 for layer in found.layers)
    assert found.needed == {"fp32": max(layer.own / layer.rounding for layer in found.layers)}
    assert str(found).startswith("no block alone leaves its tolerance; most error comes from ")
    quick = localise(tiny_model(depth=2), *exported, clips_of(2), "fp32", effects=False)
    assert [layer.logits for layer in quick.layers] == [None] * len(NAMES)
    assert [layer.own for layer in quick.layers] == [layer.own for layer in found.layers]
    assert str(quick) == "no block alone leaves its tolerance"
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
    assert found.suspect.block == block
    assert str(found).startswith(f"{block} leaves its tolerance: given right input its error is ")
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
    assert str(found) == "encoder.1 leaves its tolerance: given right input it answers NaN or infinity"
    assert [np.isinf(layer.relative) for layer in found.layers] == [False, False, True, True, True, True]
    with pytest.raises(
        BundleError, match=r"encoder\.1 leaves its tolerance.* export with keep_fp32=\('encoder\.1',\) or"
    ):
        measure_parity(model, *files, "fp16")

    files = _export(model, "fp16", tmp_path, "encoder.1")
    assert measure_parity(model, *files, "fp16", ("encoder.1",))["logit_error"] < 0.05
    mended = localise(model, *files, clips_of(1), "fp16", ("encoder.1",))
    assert mended.failing == ()
    kept = {layer.block: (layer.precision, layer.own < 2e-6) for layer in mended.layers}
    assert kept["encoder.1"] == kept["classifier"] == ("fp32", True)
    assert kept["encoder.0"] == kept["head.0"] == ("fp16", False)


def test_an_amplified_model_is_held_to_what_rounding_costs_it_and_an_error_behind_it_is_found(tmp_path: Path) -> None:
    """The class token leaves the last block as a large number in common and a small rest, so that LayerNorm cancels."""
    model = tiny_model()
    with torch.no_grad():
        model.image_encoder.transformer.resblocks[-1].mlp.c_proj.bias += 500
    files = _export(model, "fp32", tmp_path)
    found = localise(model, *files, clips_of(1), "fp32")
    assert found.failing == ()
    projection = found.layers[NAMES_OF_ONE_HEAD.index("projection")]
    assert projection.own > 1e-5, "far above what ordinary models show, and yet right"

    moved = _plant(model, lambda m: m.temporal_net.blocks[0].mlp_out.weight, 1.005)
    assert [layer.block for layer in localise(moved, *files, clips_of(1), "fp32").failing] == ["head.0"]


def test_the_reference_implementations_checkpoint_is_within_and_a_drifted_head_is_blamed(
    shared_data: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(shared_data / "a_dfew7_end_specific.pth").build_model()
    frames = np.load(shared_data / "a_dfew7_end_specific.npz")["frames"][:2].repeat(8, axis=2).repeat(8, axis=3)
    for precision in ("fp32", "fp16"):
        files = _export(model, precision, tmp_path)
        assert localise(model, *files, frames, precision).failing == ()
    head = onnx.load(files[1])
    drift(head.graph)
    onnx.save(head, tmp_path / "drifted.onnx")
    assert localise(model, files[0], tmp_path / "drifted.onnx", frames, "fp16").suspect.block == "head.0"


def _error(block: str, own: float, logits: float) -> BlockError:
    return BlockError(block, "fp32", own=own, rounding=1e-7, relative=own, cosine=1.0, logits=logits)


def test_a_block_that_fails_with_far_less_effect_than_a_later_one_is_not_blamed() -> None:
    errors = (_error("encoder.0", 2e-5, 1e-4), _error("encoder.1", 1e-7, 9.0), _error("head.0", 5e-3, 0.4))
    found = BlockComparison(errors, clips=1)
    assert [layer.block for layer in found.failing] == ["encoder.0", "head.0"]
    assert found.suspect.block == "head.0"
    assert str(found).endswith(
        "rounding to fp32 explains at most 3e-06 (encoder.0 before it too, with far less effect)"
    )
    alike = BlockComparison((_error("encoder.0", 2e-5, 0.1), errors[2]), clips=1)
    assert alike.suspect.block == "encoder.0"


def test_a_layer_norm_in_fp16_is_found_in_its_block(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model = onnx.load(exported[0])
    halve_layer_norm(model.graph)
    onnx.save(model, tmp_path / "encoder.onnx")
    found = localise(tiny_model(depth=2), tmp_path / "encoder.onnx", exported[1], clips_of(1), "fp32")
    assert [layer.block for layer in found.failing] == ["encoder.0"]


def test_a_graph_whose_blocks_cannot_be_told_apart_is_compared_as_a_whole(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for path in exported:
        model = onnx.load(path)
        norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
        norm.op_type = "Identity"
        del norm.input[1:], norm.attribute[:]
        files.append(tmp_path / path.name)
        onnx.save(model, files[-1])
    found = localise(tiny_model(depth=2), exported[0], files[1], clips_of(1), "fp32")
    assert [layer.block for layer in found.layers] == [*NAMES[:4], "temporal head"]
    assert [layer.block for layer in found.failing] == ["temporal head"]
    assert "head.onnx is compared as a whole" in capsys.readouterr().err
    found = localise(tiny_model(depth=2), files[0], exported[1], clips_of(1), "fp32")
    assert [layer.block for layer in found.layers] == ["image encoder", *NAMES[4:]]
    assert found.suspect.block == "image encoder"
    # A value that is not what its place says, of another shape, is no block's end.
    model = onnx.load(exported[1])
    second = [node for node in model.graph.node if node.op_type == "LayerNormalization"][1]
    model.graph.node.append(onnx.helper.make_node("Add", [second.input[0], second.input[0]], ["twice"]))
    onnx.save(model, files[1])
    found = localise(tiny_model(depth=2), exported[0], files[1], clips_of(1), "fp32")
    assert (found.layers[-1].block, found.failing) == ("temporal head", ())
