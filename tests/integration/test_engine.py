"""NVIDIA's own builder, ahead of time on a CPU: TensorRT-RTX refuses what TensorRT would refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny import tiny_model

from dfer_deploy.bundles.engine_records import BuildOptions, Profile
from dfer_deploy.errors import EngineError
from dfer_deploy.export import engine as engine_module
from dfer_deploy.export.engine import engine_from_onnx
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.specs import contract_for

trt = pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX builder is not installed")

OPTIONS = BuildOptions()
HEAD_PROFILE = Profile((1, 1, 64), (8, 16, 64), (64, 16, 64))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 temporal head."""
    model = tiny_model()
    path = tmp_path_factory.mktemp("head") / "dfer_temporal_head.onnx"
    with torch.inference_mode():
        onnx_from_graph(TemporalHeadGraph(model, "fp16"), contract_for(model.spec).temporal_head, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("depth", "classifier"), [(0, "text"), (2, "text"), (0, "linear"), (1, "linear")])
def test_all_graphs_build_with_dynamic_batch_and_time(
    tmp_path: Path, precision: Any, depth: int, classifier: str
) -> None:
    model = tiny_model(depth=depth, classifier=classifier)
    contract = contract_for(model.spec)
    products = {}
    for spec, graph, tail in (
        (contract.image_encoder, ImageEncoderGraph, (32, 32, 3)),
        (contract.temporal_head, TemporalHeadGraph, (64,)),
    ):
        path = tmp_path / f"{spec.name}.onnx"
        with torch.inference_mode():
            module = graph(model, precision)
        onnx_from_graph(module, spec, path)
        profile = Profile((1, 1, *tail), (4, 16, *tail), (64, 16, *tail))
        engine = engine_from_onnx(trt, path, {spec.inputs[0].name: profile}, OPTIONS, precision=precision)
        assert len(engine.plan) > 1000
        assert engine.timing_cache is None
        products[spec.name] = engine.matrix_products
    # Patch embedding, and in each of 2 layers 4 projections, 2 products of the attention and 2 of the MLP; projection.
    encoder, classifier = 1 + 2 * 8 + 1, 1
    if precision == "fp32":
        assert products == {
            "dfer_image_encoder": {"FLOAT": encoder},
            "dfer_temporal_head": {"FLOAT": 8 * depth + classifier},
        }
    else:
        half = {"HALF": 8 * depth} if depth else {}
        assert products == {"dfer_image_encoder": {"HALF": encoder}, "dfer_temporal_head": {"FLOAT": classifier} | half}


def test_an_engine_is_never_called_fp16_whose_products_are_not(tmp_path: Path, head: Path) -> None:
    with pytest.raises(EngineError, match=r"have the types \{'FLOAT': 1, 'HALF': 8\}, expected fp32"):
        engine_from_onnx(trt, head, {"frame_features": HEAD_PROFILE}, OPTIONS, precision="fp32")
    mixed = tmp_path / "mixed.onnx"
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "half"], ["square"]),
        helper.make_node("Cast", ["square"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["full", "full"], ["inner"]),
        helper.make_node("Identity", ["inner"], ["y"]),
    ]
    _save(mixed, nodes, TensorProto.FLOAT, [4, 4])
    with pytest.raises(EngineError, match=r"'HALF': 1.*expected one precision"):
        engine_from_onnx(trt, mixed, {}, OPTIONS)


def _save(path: Path, nodes: list[onnx.NodeProto], dtype: int, shape: list[int | str]) -> None:
    value = helper.make_tensor_value_info("x", dtype, shape)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [value], [output])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"frame_features": Profile((8, 1, 64), (1, 16, 64), (64, 16, 64))}, "MIN<=OPT<=MAX"),
        ({"frame_features": Profile((1, 1, 32), (1, 16, 32), (4, 16, 32))}, r"expected \[-1, -1, 64\]"),
        ({"frame_features": Profile((1, 64), (1, 64), (4, 64))}, r"expected \[-1, -1, 64\]"),
        ({"frame_features": Profile((-1, 1, 64), (1, 16, 64), (4, 16, 64))}, "profile of 'frame_features' is refused"),
        ({"features": HEAD_PROFILE}, r"\['features'\], the dynamic inputs are \['frame_features'\]"),
        ({}, r"\[\], the dynamic inputs are \['frame_features'\]"),
    ],
)
def test_impossible_profiles_are_refused_in_words(head: Path, profile: dict[str, Profile], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine_from_onnx(trt, head, profile, OPTIONS)


def test_files_that_the_parser_refuses_are_refused_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist; export the bundle again"):
        engine_from_onnx(trt, tmp_path / "absent.onnx", {}, OPTIONS)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\x00no graph" * 100)
    with pytest.raises(EngineError, match=r"garbage\.onnx holds no graph"):
        engine_from_onnx(trt, garbage, {}, OPTIONS)
    unsupported = tmp_path / "unsupported.onnx"
    _save(unsupported, [helper.make_node("Det", ["x"], ["y"])], TensorProto.FLOAT, [4, 4])
    with pytest.raises(EngineError, match=r"is refused by the parser: .*Det"):
        engine_from_onnx(trt, unsupported, {}, OPTIONS)


def test_uint8_that_meets_anything_but_a_cast_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "uint8.onnx"
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["shape"], value=helper.make_tensor("s", TensorProto.INT64, [1], [-1])),
    ]
    _save(path, [nodes[2], *nodes[:2]], TensorProto.UINT8, ["batch", 4])
    with pytest.raises(EngineError, match=r"is refused by the parser: .*has type UInt8.*of type Reshape"):
        engine_from_onnx(trt, path, {"x": Profile((1, 4), (2, 4), (4, 4))}, OPTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimization_level": 6}, "level is 6, expected 0 to 5"),
        ({"workspace_bytes": 0}, "0 MiB, expected 1 to"),
        ({"workspace_bytes": 1 << 60}, "MiB, expected 1 to"),
        ({"hardware_compatibility": "all"}, "'all', expected one of none, ampere_plus"),
    ],
)
def test_wrong_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        BuildOptions(**changes)


def test_the_options_reach_the_builder() -> None:
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)  # NVIDIA's default, which would round the products of an fp32 engine
    # TensorRT-RTX takes no notice of the hardware compatibility.
    options = BuildOptions(5, 1 << 28, "same_compute_capability", version_compatible=True)
    engine_module._configure(trt, config, options)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert config.builder_optimization_level == 5
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


def test_progress_rises_to_the_end_and_can_stop_the_build(head: Path) -> None:
    seen: list[tuple[str, str, float]] = []
    engine_from_onnx(trt, head, {"frame_features": HEAD_PROFILE}, OPTIONS, report=lambda *report: seen.append(report))
    shares = [share for _, _, share in seen]
    assert {graph for graph, _, _ in seen} == {"dfer_temporal_head"}
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(set(shares)) > 10

    def interrupt(graph: str, phase: str, share: float) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(trt, head, {"frame_features": HEAD_PROFILE}, OPTIONS, report=interrupt)


def test_the_monitor_stands_many_threads_and_keeps_an_interruption() -> None:
    """TensorRT calls it from threads of its own (NvInfer.h, IProgressMonitor), and swallows what a callback raises."""
    shares: list[float] = []
    monitor = engine_module._monitor(trt, "graph", lambda graph, phase, share: shares.append(share))
    monitor.phase_start("build", None, 4)

    def work(number: int) -> None:
        for step in range(200):
            monitor.phase_start(f"phase {number}.{step}", "build", 2)
            assert monitor.step_complete(f"phase {number}.{step}", 0)
            monitor.phase_finish(f"phase {number}.{step}")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result()
    assert monitor.stopped_by is None
    assert shares == sorted(shares)

    def interrupt(graph: str, phase: str, share: float) -> None:
        raise KeyboardInterrupt

    monitor = engine_module._monitor(trt, "graph", interrupt)
    monitor.phase_start("build", None, 4)
    assert not monitor.step_complete("build", 0)
    assert isinstance(monitor.stopped_by, KeyboardInterrupt)
