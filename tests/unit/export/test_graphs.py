import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import clips_of, tiny_model

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import BundleError, CheckpointError
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.parity import measure_parity, rounded_up
from dfer_deploy.files import sha256_of_file
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.specs import Precision, contract_for


def _graphs(model: DferClip, precision: Precision) -> tuple[ImageEncoderGraph, TemporalHeadGraph]:
    with torch.inference_mode():
        return ImageEncoderGraph(model, precision), TemporalHeadGraph(model, precision)


def _export(model: DferClip, precision: Precision, folder: Path) -> tuple[Path, Path]:
    contract = contract_for(model.spec)
    encoder, head = _graphs(model, precision)
    paths = folder / "encoder.onnx", folder / "head.onnx"
    onnx_from_graph(encoder, contract.image_encoder, paths[0])
    onnx_from_graph(head, contract.temporal_head, paths[1])
    return paths


VARIANTS: list[dict[str, Any]] = [
    {},
    {"depth": 0},
    {"depth": 6},
    {"class_specific": False, "position": "front"},
    {"contexts": 0, "position": "middle"},
    {"quick_gelu": False, "temperature": 0.05},
    {"classifier": "linear", "depth": 0},
    {"classifier": "linear", "depth": 2},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("time", [1, 9, 16])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_modules_compute_what_the_model_computes(changes: dict[str, Any], batch: int, time: int) -> None:
    model = tiny_model(**changes)
    frames = torch.from_numpy(clips_of(batch)[:, :time])
    encoder, head = _graphs(model, "fp32")
    with torch.inference_mode():
        logits, probabilities = head(encoder(frames))
        expected = model(images_from_frames(frames))
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(probabilities, expected.softmax(dim=-1), atol=1e-4, rtol=0)


def test_biases_of_the_attention_are_added_where_the_mathematics_needs_them(tmp_path: Path) -> None:
    """The key bias not at all, the value bias with the output's; open_clip initialises all of them with zeros."""
    model = tiny_model()
    with torch.no_grad():
        for block in model.image_encoder.transformer.resblocks:
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias):
                bias.normal_()
    encoder, head = _export(model, "fp32", tmp_path)
    assert 0 < measure_parity(model, encoder, head, "fp32")["logit_error"] <= 1e-3
    graph = onnx.load(encoder).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    biases = [n for n in graph.node if n.op_type == "Add" and any(len(weights.get(v, ())) == 1 for v in n.input)]
    assert len(biases) == 4 * model.spec.clip.vision.layers


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_linear_head_is_exported_too(precision: Precision, tmp_path: Path) -> None:
    model = tiny_model(classifier="linear", depth=0)
    parity = measure_parity(model, *_export(model, precision, tmp_path), precision)
    assert 0 < parity["logit_error"] <= {"fp32": 1e-4, "fp16": 0.05}[precision]
    assert model.head is not None
    with torch.no_grad():
        model.head.bias += 5
    with pytest.raises(BundleError, match="temporal head, logit error"):
        measure_parity(model, tmp_path / "encoder.onnx", tmp_path / "head.onnx", precision)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Precision, Path, Path]:
    precision: Precision = request.param
    return precision, *_export(tiny_model(depth=2), precision, tmp_path_factory.mktemp("onnx"))


def test_onnxruntime_answers_like_pytorch(exported: tuple[Precision, Path, Path]) -> None:
    precision, encoder, head = exported
    parity = measure_parity(tiny_model(depth=2), encoder, head, precision)
    assert 0 < parity["logit_error"] <= {"fp32": 1e-3, "fp16": 0.5}[precision]


def test_the_check_before_the_bundle_sees_a_foreign_graph(exported: tuple[Precision, Path, Path]) -> None:
    precision, encoder, head = exported
    other = tiny_model(depth=2)
    with torch.no_grad():
        other.temporal_net.blocks[1].mlp_out.weight.mul_(1.5)
    with pytest.raises(BundleError, match="do not answer like PyTorch: temporal head, logit error"):
        measure_parity(other, encoder, head, precision)


def test_types_stand_in_the_graph_as_the_precision_says(exported: tuple[Precision, Path, Path]) -> None:
    precision, *paths = exported
    product = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    for path in paths:
        model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
        graph = model.graph
        values = (*graph.value_info, *graph.input, *graph.output)
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        islands = [n for n in graph.node if n.op_type in ("LayerNormalization", "Tanh", "Pow", "ReduceL2")]
        assert products
        assert {n.op_type for n in islands} == (
            {"LayerNormalization"} if path.stem == "encoder" else {"LayerNormalization", "Tanh", "Pow", "ReduceL2"}
        )
        half = [n for n in products if types[n.output[0]] == product]
        # The classifier, the head's last product, is an fp32 island.
        assert len(products) - len(half) == (1 if precision == "fp16" and path.stem == "head" else 0)
        assert {types[n.output[0]] for n in islands} == {onnx.TensorProto.FLOAT}
        assert model.opset_import[0].version >= 18
        assert all(not n.metadata_props and not n.doc_string for n in graph.node)


def test_weights_that_fp16_cannot_hold_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.image_encoder.proj[0, 0] = 1e6
    with pytest.raises(
        CheckpointError, match=r"a weight of projection, .* export with keep_fp32=\('projection',\) or precision='fp32'"
    ):
        _graphs(model, "fp16")
    with torch.no_grad():
        model.image_encoder.proj[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinite; train it again"):
        _graphs(model, "fp32")


def test_the_same_bytes_come_from_different_folders_and_processes(
    own_checkpoint: Path, bundle: Bundle, tmp_path: Path
) -> None:
    digests = []
    for name in ("first", "second/with/another/path"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        copy = folder / f"{len(digests)}.pt"
        copy.write_bytes(own_checkpoint.read_bytes())
        subprocess.run(
            [sys.executable, "-m", "dfer_deploy", "export", copy.name, "-o", "out"],
            cwd=folder,
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": str(len(digests))},
        )
        files = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
        digests.append({str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) >= 9
    graphs = {f"out/onnx/{path.name}": sha256_of_file(path) for path in bundle.path.glob("onnx/*.onnx")}
    assert len(graphs) == 3
    assert graphs.items() <= digests[0].items(), "what other tests share is another graph"


@pytest.mark.parametrize(
    ("error", "bound"), [(0, 0), (0.00013, 0.0002), (0.0002, 0.0002), (0.6, 1.0), (3.1e-5, 5e-5), (7e-7, 1e-6)]
)
def test_errors_are_rounded_up_to_1_2_5(error: float, bound: float) -> None:
    assert rounded_up(error) == pytest.approx(bound)


def test_reference_logits_come_out_of_onnxruntime(shared_data: Path, tmp_path: Path) -> None:
    """The reference implementation's own answers: fp32 within 3e-3, fp16 within 2.5 without a flipped answer."""
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor

    model = load_checkpoint(shared_data / "a_dfew7_end_specific.pth").build_model()
    answers = np.load(shared_data / "a_dfew7_end_specific.npz")
    frames = answers["frames"].repeat(8, axis=2).repeat(8, axis=3)
    tolerances: dict[Precision, float] = {"fp32": 3e-3, "fp16": 2.5}
    for precision, tolerance in tolerances.items():
        folder = tmp_path / precision
        folder.mkdir()
        with OnnxRuntimePredictor(*_export(model, precision, folder)) as predictor:
            logits = predictor.predict(frames).logits
            first9 = predictor.predict(frames[:, :9]).logits
        np.testing.assert_allclose(logits, answers["logits"], atol=tolerance)
        np.testing.assert_allclose(first9, answers["logits_first9"], atol=tolerance)
        assert (logits.argmax(axis=1) == answers["logits"].argmax(axis=1)).all()
