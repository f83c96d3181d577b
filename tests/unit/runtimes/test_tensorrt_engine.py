"""What can be known about engines without a GPU; nothing here pretends to run one. See tests/gpu for the rest."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_spec

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import EngineError, MissingExtraError, RuntimeUnavailableError, SettingError
from dfer_deploy.runtimes.engine_tensors import EngineTensor, ShapeRange, check_tensors, pieces
from dfer_deploy.runtimes.tensorrt_engine import EngineRunner, LoadedEngine, import_tensorrt
from dfer_deploy.specs import contract_for

CONTRACT = contract_for(tiny_spec())
RANGE = ShapeRange((1, 1, 32, 32, 3), (64, 16, 32, 32, 3))


@pytest.mark.parametrize(
    ("batch", "largest", "lengths"), [(1, 64, [1]), (64, 64, [64]), (65, 64, [64, 1]), (9, 4, [4, 4, 1]), (0, 4, [0])]
)
def test_pieces_cover_the_batch_once_and_in_order(batch: int, largest: int, lengths: list[int]) -> None:
    clips = list(range(batch))
    cut = [clips[piece] for piece in pieces(batch, largest)]
    assert [len(part) for part in cut] == lengths
    assert [clip for part in cut for clip in part] == clips


@pytest.mark.parametrize("shape", [(1, 1, 32, 32, 3), (64, 16, 32, 32, 3), (5, 9, 32, 32, 3)])
def test_shapes_within_the_profile_are_accepted(shape: tuple[int, ...]) -> None:
    RANGE.check("frames", shape)


@pytest.mark.parametrize(
    "shape", [(65, 16, 32, 32, 3), (1, 17, 32, 32, 3), (0, 16, 32, 32, 3), (1, 16, 64, 32, 3), (16, 32, 32, 3), ()]
)
def test_shapes_outside_the_profile_are_told_with_its_limits(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingError) as caught:
        RANGE.check("frames", shape)
    assert f"frames has the shape {list(shape)}" in str(caught.value)
    assert "[1, 1, 32, 32, 3] to [64, 16, 32, 32, 3]" in str(caught.value)


def test_memory_is_sized_by_the_largest_shape() -> None:
    (frames,), (features,) = CONTRACT.image_encoder.inputs, CONTRACT.image_encoder.outputs
    logits, _ = CONTRACT.temporal_head.outputs
    assert RANGE.room_for(frames) == 64 * 16 * 32 * 32 * 3
    assert RANGE.room_for(features) == 64 * 16 * 64
    assert ShapeRange((1, 1, 64), (8, 16, 64)).room_for(logits) == 8 * 3


def test_what_nvidias_parser_makes_of_the_graphs_is_what_an_engine_must_be(bundle: Bundle) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX builder is not installed")
    for spec, onnx in (
        (bundle.contract.image_encoder, bundle.image_encoder_onnx),
        (bundle.contract.temporal_head, bundle.temporal_head_onnx),
    ):
        log = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(network, log).parse_from_file(str(onnx))
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        found = [
            EngineTensor(tensor.name, mode.name, tensor.dtype.name, tensor.shape[:])
            for mode, tensors in ((trt.TensorIOMode.INPUT, inputs), (trt.TensorIOMode.OUTPUT, outputs))
            for tensor in tensors
        ]
        check_tensors(found, spec, onnx)
        for wrong in (
            [replace(found[0], dtype="HALF"), *found[1:]],
            [replace(found[0], shape=(*found[0].shape[:-1], 7)), *found[1:]],
            [replace(found[0], mode="OUTPUT"), *found[1:]],
            [replace(found[0], name="images"), *found[1:]],
            found[1:],
            [*found, EngineTensor("more", "OUTPUT", "FLOAT", (1,))],
        ):
            with pytest.raises(RuntimeUnavailableError, match="engine of another model"):
                check_tensors(wrong, spec, onnx)


def test_a_plan_that_is_refused_comes_with_the_reasons(tmp_path: Path) -> None:
    """TensorRT says no by returning None; the reason is in its messages only."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX runtime is not installed")
    (tmp_path / "model.plan").write_bytes(b"no plan")
    with pytest.raises(EngineError) as caught:
        LoadedEngine(trt, tmp_path / "model.plan")
    assert f"model.plan cannot be loaded by TensorRT {trt.__version__}" in str(caught.value)
    assert "bufferSize >= minBufferSize" in str(caught.value)
    assert "dfer-deploy build" in str(caught.value)
    with pytest.raises(RuntimeUnavailableError, match=r"none\.plan cannot be read"):
        LoadedEngine(trt, tmp_path / "none.plan")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="needs an NVIDIA GPU"):
        EngineRunner(None, tmp_path / "model.plan", CONTRACT.image_encoder)


def test_tensorrt_that_is_missing_old_or_only_its_types_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"\[gpu\]"):
        import_tensorrt()
    module = types.ModuleType("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(MissingExtraError, match=r"\[gpu\]"):
        import_tensorrt()
    module.Runtime = object  # type: ignore[attr-defined]
    for version, accepted in (("10.11.0.33", False), ("10.12.0.36", True), ("11.4.0.1", True), ("9.9", False)):
        module.__version__ = version  # type: ignore[attr-defined]
        if accepted:
            assert import_tensorrt() is module
        else:
            with pytest.raises(RuntimeUnavailableError, match=f"TensorRT {version} is too old"):
                import_tensorrt()
