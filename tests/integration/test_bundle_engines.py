"""The engines of a bundle, built by NVIDIA's own builder ahead of time on a CPU (TensorRT-RTX)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from dfer_deploy.bundles import engines
from dfer_deploy.bundles.bundle import ServingOptions
from dfer_deploy.bundles.engine_builds import BUILDS_NAME
from dfer_deploy.bundles.engine_records import SIDECAR, BuildOptions, Profile
from dfer_deploy.bundles.integrity import check_bundle_files, open_bundle
from dfer_deploy.errors import ConfigurationError, EngineError
from dfer_deploy.export.bundle_engines import build_bundle, builder_module
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.export.standalone import build_engines_source
from dfer_deploy.files import sha256_of_file
from dfer_deploy.runtimes.available import tensorrt_obstacle

trt = pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX builder is not installed")

OPTIONS = BuildOptions()


@pytest.fixture(scope="module")
def exported(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt") / "bundle"
    return export_to_folder(own_checkpoint, folder, ExportOptions("tensorrt", ServingOptions(64)))[0].path


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


def test_blocks_that_stay_fp32_make_a_mixed_engine_and_nothing_else_does(
    own_checkpoint: Path, tmp_path: Path, tensorrt: Any
) -> None:
    serving = ServingOptions(max_batch_size=4)
    options = ExportOptions("tensorrt", serving, keep_fp32=("encoder.1", "projection"))
    bundle, _ = export_to_folder(own_checkpoint, tmp_path / "b", options)
    _, found, _ = build_bundle(tensorrt, bundle.path, OPTIONS, report=_silent)
    built = {name: (engine.precision, engine.matrix_products) for name, engine in found.engines.items()}
    # Layer 1 and the projection; of the patch embedding and layer 0 nothing. In the head only the classifier.
    assert built == {
        "dfer_image_encoder": ("mixed", {"FLOAT": 8 + 1, "HALF": 1 + 8}),
        "dfer_temporal_head": ("fp16", {"FLOAT": 1, "HALF": 8}),
    }
    assert open_bundle(bundle.path).engines is not None

    # As many products in fp32, but of another layer than the bundle says.
    of_another_layer = ["HALF", *["FLOAT"] * 8, *["HALF"] * 8, "FLOAT"]
    expected = bundle.path / BUILDS_NAME
    _edit(expected, lambda builds: builds["graphs"]["dfer_image_encoder"].update(matrix_products=of_another_layer))
    with pytest.raises(EngineError, match=r"'FLOAT': 9, 'HALF': 9\}, the bundle's blocks .* product 2 is the first"):
        build_bundle(tensorrt, bundle.path, BuildOptions(optimization_level=1), report=_silent)
    # Mixed without saying so.
    _edit(expected, lambda builds: builds["graphs"]["dfer_image_encoder"].update(matrix_products=None))
    with pytest.raises(EngineError, match=r"'HALF': 9\}, expected fp16; export the bundle again"):
        build_bundle(tensorrt, bundle.path, BuildOptions(optimization_level=1), report=_silent)


def test_engines_lie_where_triton_looks_and_belong_to_the_bundle(bundle: Path, tensorrt: Any) -> None:
    assert open_bundle(bundle).engines is None
    sidecar, _, built = build_bundle(tensorrt, bundle, OPTIONS, opt_batch=4, report=_silent)
    assert sidecar == bundle / SIDECAR
    assert built == ["dfer_image_encoder", "dfer_temporal_head"]
    opened = open_bundle(bundle)
    found = opened.engines
    assert found is not None
    assert (found.builder.module, found.builder.version, found.device) == ("tensorrt", "11.4.0.1", None)
    record = found.engines["dfer_image_encoder"]
    assert record.plan == "model_repository/dfer_image_encoder/1/model.plan"
    assert record.profile == {"frames": Profile((1, 1, 32, 32, 3), (4, 16, 32, 32, 3), (64, 16, 32, 32, 3))}
    assert (record.precision, record.matrix_products) == ("fp16", {"HALF": 18})
    assert (bundle / record.plan).stat().st_size == record.bytes
    assert not list(bundle.rglob("*.part"))

    times = {path: path.stat().st_mtime_ns for path in bundle.rglob("*.plan")}
    assert build_bundle(tensorrt, bundle, OPTIONS, opt_batch=4, report=_silent)[2] == []
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*.plan")} == times
    (bundle / record.plan).write_bytes(b"damaged")
    with pytest.raises(EngineError):
        open_bundle(bundle)
    assert build_bundle(tensorrt, bundle, OPTIONS, opt_batch=4, report=_silent)[2] == ["dfer_image_encoder"]
    open_bundle(bundle)
    assert len(build_bundle(tensorrt, bundle, BuildOptions(optimization_level=1), opt_batch=4, report=_silent)[2]) == 2
    open_bundle(bundle)


def test_a_plan_is_hashed_once_for_an_opened_bundle(
    bundle: Path, tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    hashed: list[Path] = []
    monkeypatch.setattr(engines, "sha256_of_file", lambda path: hashed.append(path) or sha256_of_file(path))
    opened = open_bundle(bundle)
    check_bundle_files(opened)
    tensorrt_obstacle(opened)
    assert opened.engines is not None
    assert sorted(path.name for path in hashed) == ["model.plan"] * 2
    build_bundle(tensorrt, bundle, BuildOptions(optimization_level=1), report=_silent)
    again = open_bundle(bundle).engines
    assert again is not None
    assert (opened.engines.builder.optimization_level, again.builder.optimization_level) == (3, 1)


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
    with pytest.raises(EngineError):
        open_bundle(bundle)


def test_an_interrupted_build_goes_on_with_the_second_engine(bundle: Path, tensorrt: Any) -> None:
    def interrupt(graph: str, phase: str, share: float) -> None:
        if graph == "dfer_temporal_head":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(tensorrt, bundle, OPTIONS, report=interrupt)
    with pytest.raises(EngineError):
        open_bundle(bundle)
    assert build_bundle(tensorrt, bundle, OPTIONS, report=_silent)[2] == ["dfer_temporal_head"]
    open_bundle(bundle)


def test_what_cannot_be_built_is_told_before(bundle: Path, tensorrt: Any, own_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="65 clips"):
        build_bundle(tensorrt, bundle, OPTIONS, opt_batch=65, report=_silent)
    tensorrt.__version__ = "10.11.0.33"
    with pytest.raises(EngineError, match=r"TensorRT 10\.11\.0\.33 is too old, expected 10\.12 or later"):
        build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    (bundle / "onnx" / "dfer_image_encoder.onnx").write_bytes(b"other")
    with pytest.raises(EngineError, match="is not the graph that was exported"):
        build_bundle(trt, bundle, OPTIONS, report=_silent)
    embedded, _ = export_to_folder(own_checkpoint, tmp_path / "embedded", ExportOptions("embedded"))
    with pytest.raises(EngineError, match=r"has no build_engines\.json, expected a bundle of the target 'tensorrt'"):
        build_bundle(trt, embedded.path, OPTIONS, report=_silent)
    with pytest.raises(EngineError):
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
from dfer_deploy.bundles.engine_records import BuildOptions
from dfer_deploy.export.bundle_engines import build_bundle
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
    found = open_bundle(bundle).engines
    assert found is not None
    assert len(found.engines) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("version"), "version is missing"),
        (lambda c: c.update(version=0), "the version is 0, expected at least 1"),
        (lambda c: c.update(format="other"), "its format is not 'dfer-deploy-engine-builds/1'"),
        (lambda c: c.update(graphs=[]), r"graphs is \[\], expected a table"),
        (lambda c: c["graphs"].update({"../../dfer": c["graphs"].pop("dfer_image_encoder")}), "'../../dfer', expected"),
        (lambda c: c["graphs"]["dfer_image_encoder"].update(precision="int8"), "'int8', expected one of fp32, fp16"),
        (
            lambda c: c["graphs"]["dfer_image_encoder"].update(matrix_products=["INT8"]),
            "'INT8', expected FLOAT or HALF",
        ),
        (lambda c: c["graphs"]["dfer_image_encoder"].pop("onnx_sha256"), "onnx_sha256 is missing"),
        (
            lambda c: c["graphs"]["dfer_image_encoder"]["profile"]["frames"].update(opt=[1]),
            "three shapes of one length",
        ),
        (
            lambda c: c["graphs"]["dfer_image_encoder"]["profile"]["frames"].update(min=[0, 1, 32, 32, 3]),
            "none smaller than the one before",
        ),
        (
            lambda c: c["graphs"]["dfer_image_encoder"]["profile"].update(
                frames={bound: [] for bound in ("min", "opt", "max")}
            ),
            "three shapes of one length",
        ),
    ],
)
def test_a_damaged_description_is_refused_in_words(bundle: Path, change: Any, message: str) -> None:
    _edit(bundle / BUILDS_NAME, change)
    with pytest.raises(ConfigurationError, match=message) as refused:
        build_bundle(trt, bundle, OPTIONS, report=_silent)
    assert "write it again with: dfer-deploy configure" in str(refused.value)


def test_a_description_that_cannot_be_read_is_refused_in_words(bundle: Path) -> None:
    for content in (b"", b"\xff", b"[]", b"[" * 100_000, b" " * (1 << 21)):
        (bundle / BUILDS_NAME).write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"build_engines\.json is damaged"):
            build_bundle(trt, bundle, OPTIONS, report=_silent)


def test_the_command_builds_only_what_the_manifest_lists(cli: Callable[..., Any], bundle: Path) -> None:
    _edit(bundle / BUILDS_NAME, lambda builds: builds["graphs"].pop("dfer_temporal_head"))
    refused = cli("build", bundle, "--builder", "tensorrt_rtx")
    assert refused.exit_code == 2
    assert f"write it again with: dfer-deploy configure {bundle}" in refused.output.replace("\n", " ")
    assert cli("configure", bundle).exit_code == 0
    assert cli("build", bundle, "--builder", "tensorrt_rtx").exit_code == 0


def test_a_new_version_keeps_the_old_engine(bundle: Path, tensorrt: Any, tmp_path: Path) -> None:
    from dfer_deploy.checkpoints.checkpoint import save_checkpoint

    build_bundle(tensorrt, bundle, OPTIONS, report=_silent)
    save_checkpoint(tmp_path / "other.pt", tiny_model(seed=1), {})
    (bundle / "engines" / "gpu.timing_cache").write_bytes(b"measured")
    options = ExportOptions("tensorrt", ServingOptions(64))
    opened, _ = export_to_folder(tmp_path / "other.pt", bundle, options, add_version=True)
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
        if name.split(".")[0] in ("dfer_deploy", "torch", "onnx", "click", "rich", "onnxruntime", "google", "numpy"):
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
        builder_module(name)


def test_the_command_builds_and_says_what(cli: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    result = cli("build", bundle, "--builder", "tensorrt_rtx", "--json", tmp_path / "build.json")
    assert result.exit_code == 0, result.output
    assert "18 HALF" in result.output
    assert "Triton cannot load these engines" in result.output
    content = json.loads((tmp_path / "build.json").read_text())
    assert content["built_now"] == ["dfer_image_encoder", "dfer_temporal_head"]
    result = cli("build", bundle, "--builder", "tensorrt_rtx", "--optimization-level", 9)
    assert result.exit_code == 2
    assert "level is 9" in result.output
