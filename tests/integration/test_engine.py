"""NVIDIA's own builder, ahead of time on a CPU: TensorRT-RTX refuses what TensorRT would refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny import tiny_model

from dfer_deploy.bundles.bundle import ServingOptions
from dfer_deploy.bundles.engines import SIDECAR, ProfileRecord, engines_of
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.errors import DferDeployError
from dfer_deploy.export import engine as engine_module
from dfer_deploy.export.engine import BuildOptions, EngineError, Profile, build_bundle, engine_from_onnx
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.pipeline import ExportOptions, export_bundle
from dfer_deploy.export.standalone import build_engines_source
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


def test_blocks_that_stay_fp32_make_a_mixed_engine_and_nothing_else_does(
    own_checkpoint: Path, tmp_path: Path, tensorrt: Any
) -> None:
    serving = ServingOptions(max_batch_size=4)
    options = ExportOptions("tensorrt", serving, keep_fp32=("encoder.1", "projection"))
    bundle, _ = export_bundle(own_checkpoint, tmp_path / "b", options)
    _, content, _ = build_bundle(tensorrt, bundle.path, OPTIONS, report=_silent)
    engines = {name: (e["precision"], e["matrix_products"]) for name, e in content["engines"].items()}
    # Layer 1 and the projection; of the patch embedding and layer 0 nothing. In the head only the classifier.
    assert engines == {
        "dfer_image_encoder": ("mixed", {"FLOAT": 8 + 1, "HALF": 1 + 8}),
        "dfer_temporal_head": ("fp16", {"FLOAT": 1, "HALF": 8}),
    }
    assert engines_of(open_bundle(bundle.path)) is not None

    # As many products in fp32, but of another layer than the manifest says.
    _edit(bundle.path / "manifest.json", lambda m: m.update(keep_fp32=["encoder.0", "projection"]))
    with pytest.raises(EngineError, match=r"'FLOAT': 9, 'HALF': 9\}, the manifest's blocks .* product 2 is the first"):
        build_bundle(tensorrt, bundle.path, BuildOptions(optimization_level=1), report=_silent)
    # Mixed without saying so.
    _edit(bundle.path / "manifest.json", lambda m: m.pop("keep_fp32"))
    with pytest.raises(EngineError, match=r"'HALF': 9\}, expected fp16; export the bundle again"):
        build_bundle(tensorrt, bundle.path, BuildOptions(optimization_level=1), report=_silent)


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


@pytest.fixture(scope="module")
def exported(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt") / "bundle"
    return export_bundle(own_checkpoint, folder, ExportOptions("tensorrt", ServingOptions(64)))[0].path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A bundle of the target tensorrt without engines, for a test to change."""
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture
def tensorrt() -> Any:
    """TensorRT-RTX under the name of TensorRT: the product's code runs, though Triton could not load the plans."""
    module = types.ModuleType("tensorrt")
    module.__dict__.update({name: getattr(trt, name) for name in dir(trt) if not name.startswith("__")})
    module.__version__ = "11.4.0.1"  # type: ignore[attr-defined]
    return module


def _silent(graph: str, phase: str, share: float) -> None:
    pass


def test_engines_lie_where_triton_looks_and_belong_to_the_bundle(bundle: Path, tensorrt: Any) -> None:
    assert engines_of(open_bundle(bundle)) is None
    sidecar, _, built = build_bundle(tensorrt, bundle, OPTIONS, opt_batch=4, report=_silent)
    assert sidecar == bundle / SIDECAR
    assert built == ["dfer_image_encoder", "dfer_temporal_head"]
    opened = open_bundle(bundle)
    found = engines_of(opened)
    assert found is not None
    assert (found.builder.module, found.builder.version, found.device) == ("tensorrt", "11.4.0.1", None)
    record = found.engines["dfer_image_encoder"]
    assert record.plan == "model_repository/dfer_image_encoder/1/model.plan"
    assert record.profile == {"frames": ProfileRecord((1, 1, 32, 32, 3), (4, 16, 32, 32, 3), (64, 16, 32, 32, 3))}
    assert (record.precision, record.matrix_products) == ("fp16", {"HALF": 18})
    assert (bundle / record.plan).stat().st_size == record.bytes
    assert not list(bundle.rglob("*.part"))

    times = {path: path.stat().st_mtime_ns for path in bundle.rglob("*.plan")}
    assert build_bundle(tensorrt, bundle, OPTIONS, opt_batch=4, report=_silent)[2] == []
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*.plan")} == times
    (bundle / record.plan).write_bytes(b"damaged")
    with pytest.raises(DferDeployError, match=r"not the engine that was built; build again with: dfer-deploy build"):
        open_bundle(bundle)
    assert build_bundle(tensorrt, bundle, OPTIONS, opt_batch=4, report=_silent)[2] == ["dfer_image_encoder"]
    open_bundle(bundle)
    assert len(build_bundle(tensorrt, bundle, BuildOptions(optimization_level=1), opt_batch=4, report=_silent)[2]) == 2
    open_bundle(bundle)


def _edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["engines"].pop("dfer_temporal_head"),
            "no engine of dfer_temporal_head, the build was interrupted",
        ),
        (lambda c: c["engines"]["dfer_image_encoder"].update(onnx_sha256="0"), "was built from another graph"),
        (
            lambda c: c["engines"]["dfer_image_encoder"].update(plan="../../etc/passwd"),
            "names ../../etc/passwd, expected",
        ),
        (lambda c: c.update(format="other"), "is damaged"),
        (lambda c: c.pop("device"), "is damaged"),
        (lambda c: c["builder"].update(version=11), "is damaged"),
        (lambda c: c["engines"]["dfer_image_encoder"].update(profile={"frames": 3}), "is damaged"),
        (
            lambda c: c["engines"]["dfer_image_encoder"]["profile"]["frames"].update(opt=[]),
            "has no profile of 'frames'",
        ),
        (lambda c: c["engines"]["dfer_image_encoder"].update(profile={}), "has no profile of 'frames'"),
        (lambda c: c["builder"].update(version="11.1.0'; touch pwned; '"), "is damaged .builder.version is"),
        (lambda c: c["builder"].update(version="1" * 5000), "is damaged"),
        (lambda c: c["engines"].update(dfer_image_encoder="x"), "is damaged"),
        (
            lambda c: c["engines"]["dfer_image_encoder"]["profile"]["frames"].update(max=[8, 16, 32, 32, 3]),
            "takes up to 8 clips, the bundle is configured for 64",
        ),
    ],
)
def test_a_record_that_does_not_fit_is_refused(bundle: Path, tensorrt: Any, change: Any, message: str) -> None:
    build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    _edit(bundle / SIDECAR, change)
    with pytest.raises(DferDeployError, match=message):
        open_bundle(bundle)


def test_an_interrupted_build_goes_on_with_the_second_engine(bundle: Path, tensorrt: Any) -> None:
    def interrupt(graph: str, phase: str, share: float) -> None:
        if graph == "dfer_temporal_head":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(tensorrt, bundle, OPTIONS, report=interrupt)
    with pytest.raises(DferDeployError, match="the build was interrupted; build again"):
        open_bundle(bundle)
    assert build_bundle(tensorrt, bundle, OPTIONS, report=_silent)[2] == ["dfer_temporal_head"]
    open_bundle(bundle)


def test_what_cannot_be_built_is_told_before(bundle: Path, tensorrt: Any, own_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="65 clips, expected 1 to 64"):
        build_bundle(tensorrt, bundle, OPTIONS, opt_batch=65, report=_silent)
    tensorrt.__version__ = "10.11.0.33"
    with pytest.raises(EngineError, match=r"TensorRT 10\.11\.0\.33 is too old, expected 10\.12 or later"):
        build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    (bundle / "onnx" / "dfer_image_encoder.onnx").write_bytes(b"other")
    with pytest.raises(EngineError, match="is not the graph that was exported"):
        build_bundle(trt, bundle, OPTIONS, report=_silent)
    embedded, _ = export_bundle(own_checkpoint, tmp_path / "embedded", ExportOptions("embedded"))
    with pytest.raises(EngineError, match="target 'embedded', expected 'tensorrt'"):
        build_bundle(trt, embedded.path, OPTIONS, report=_silent)
    with pytest.raises(EngineError, match="is no manifest of a bundle"):
        build_bundle(trt, tmp_path, OPTIONS, report=_silent)


def test_a_damaged_record_is_built_anew(bundle: Path, tensorrt: Any) -> None:
    build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    _edit(bundle / SIDECAR, lambda content: content["engines"].update(dfer_image_encoder="x"))
    assert build_bundle(tensorrt, bundle, OPTIONS, report=_silent)[2] == ["dfer_image_encoder"]
    open_bundle(bundle)


@pytest.mark.parametrize("folder", ["engines", "model_repository/dfer_temporal_head/1"])
def test_nothing_is_written_through_a_link(bundle: Path, tensorrt: Any, tmp_path: Path, folder: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(bundle / folder, ignore_errors=True)
    (bundle / folder).symlink_to(elsewhere)
    with pytest.raises(EngineError, match="is a link to another place"):
        build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    assert not list(elsewhere.iterdir())


_KILLED = """
import os, signal, sys, types
from pathlib import Path
import tensorrt_rtx as trt
from dfer_deploy.export.engine import BuildOptions, build_bundle
module = types.ModuleType("tensorrt")
module.__dict__.update({name: getattr(trt, name) for name in dir(trt) if not name.startswith("__")})
module.__version__ = "11.4.0.1"
left = int(sys.argv[2])
def counted(replace):
    def call(self, target):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return replace(self, target)
    return call
Path.replace = counted(Path.replace)
build_bundle(module, Path(sys.argv[1]), BuildOptions(), report=lambda *report: None)
"""


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_killed_build_is_mended_by_the_next(bundle: Path, tensorrt: Any, renames: int) -> None:
    """Killed before one of its renames: record, plan, record, plan."""
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(bundle), str(renames)], check=False)
    assert killed.returncode == -signal.SIGKILL
    build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    engines = engines_of(open_bundle(bundle))
    assert engines is not None
    assert len(engines.engines) == 2


@pytest.mark.parametrize("key", ["name", "version", "precision", "serving", "spec", "files"])
def test_a_damaged_manifest_is_told_in_words(bundle: Path, key: str) -> None:
    _edit(bundle / "manifest.json", lambda content: content.pop(key))
    with pytest.raises(EngineError, match="is no manifest of a bundle"):
        build_bundle(trt, bundle, OPTIONS, report=_silent)


def test_a_name_that_leaves_the_folder_is_refused(bundle: Path) -> None:
    _edit(bundle / "manifest.json", lambda content: content.update(name="../../dfer"))
    with pytest.raises(EngineError, match="is no manifest of a bundle"):
        build_bundle(trt, bundle, OPTIONS, report=_silent)


def test_a_new_version_keeps_the_old_engine(bundle: Path, tensorrt: Any, tmp_path: Path) -> None:
    from dfer_deploy.checkpoints.checkpoint import save_checkpoint

    build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    save_checkpoint(tmp_path / "other.pt", tiny_model(seed=1), {})
    (bundle / "engines" / "gpu.timing_cache").write_bytes(b"measured")
    options = ExportOptions("tensorrt", ServingOptions(64))
    opened, _ = export_bundle(tmp_path / "other.pt", bundle, options, add_version=True)
    (bundle / "engines" / "gpu.timing_cache").write_bytes(b"measured anew")
    encoder = opened.model_repository / "dfer_image_encoder"
    assert sorted(path.relative_to(encoder).as_posix() for path in encoder.rglob("*.plan")) == ["1/model.plan"]
    build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    assert sorted(path.relative_to(encoder).as_posix() for path in encoder.rglob("*.plan")) == [
        "1/model.plan",
        "2/model.plan",
    ]
    open_bundle(bundle)


_WITHOUT_THE_PACKAGE = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dfer_deploy", "torch", "onnx", "click", "rich", "onnxruntime", "google"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_file_in_the_bundle_builds_without_this_package(bundle: Path, tmp_path: Path) -> None:
    script = bundle / "build_engines.py"
    assert script.read_text() == build_engines_source()
    # As a user without TensorRT, but with TensorRT-RTX, would try it: one module in the place of the other.
    (tmp_path / "tensorrt.py").write_text("import sys, tensorrt_rtx\nsys.modules[__name__] = tensorrt_rtx\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", _WITHOUT_THE_PACKAGE, str(script), "--opt-batch", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dfer_temporal_head: fp16, matrix products {'FLOAT': 1, 'HALF': 8}" in done.stdout
    engines = sorted(path.name for path in (bundle / "engines" / "tensorrt_rtx").iterdir())
    assert engines == ["dfer_image_encoder.engine", "dfer_temporal_head.engine", "engines.json"]
    open_bundle(bundle)  # and the bundle is as good as before
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.stdout.count("unchanged") == 2
    (tmp_path / "tensorrt.py").write_text("")
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: the module 'tensorrt' has no Builder")


@pytest.mark.parametrize("name", ["", "../foo", ".x", "json", "absent_module"])
def test_what_is_no_builder_is_refused(name: str) -> None:
    with pytest.raises(EngineError, match=r"cannot be imported|has no Builder"):
        engine_module.builder_module(name)


def test_the_command_builds_and_says_what(cli: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    result = cli("build", bundle, "--builder", "tensorrt_rtx", "--json", tmp_path / "build.json")
    assert result.exit_code == 0, result.output
    assert "18 HALF" in result.output
    assert "Triton cannot load these engines" in result.output
    content = json.loads((tmp_path / "build.json").read_text())
    assert content["built_now"] == ["dfer_image_encoder", "dfer_temporal_head"]
    result = cli("build", bundle, "--builder", "tensorrt_rtx", "--optimization-level", 9)
    assert result.exit_code == 2
    assert "level is 9, expected 0 to 5" in result.output
