"""Optional packages: absent, broken, too old, both onnxruntimes at once."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from dfer_deploy.doctor.finding import Finding
from dfer_deploy.doctor.packages import (
    IDENTITY_ONNX,
    PACKAGES,
    Package,
    package_findings,
    probe_package,
    usable_tensorrt,
    version_numbers,
)
from dfer_deploy.errors import install_command


def finding(what: str, *, gpu: bool = False, **packages: Package) -> Finding:
    (found,) = (
        line
        for line in package_findings({name: Package() for name in PACKAGES} | packages, gpu=gpu)
        if line.what == what
    )
    return found


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that comes first where the children look for packages."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "__init__.py").write_text(code)


def test_the_real_onnxruntime_of_this_python() -> None:
    found = probe_package("onnxruntime")
    assert found.version == metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in found.details["providers"]
    assert found.details["installed"] == [f"onnxruntime {found.version}"]
    assert finding("onnxruntime", onnxruntime=found).state == "ok"


def test_the_session_that_tells_whether_cuda_loads_is_a_real_model() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(bytes.fromhex(IDENTITY_ONNX), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([7], np.float32)}) == [np.array([7], np.float32)]


@pytest.mark.parametrize(("loaded", "said"), [("CUDA", "loads"), ("CPU", "does not load")])
def test_a_compiled_in_provider_counts_only_if_a_session_gets_it(path: Path, loaded: str, said: str) -> None:
    package(
        path,
        "onnxruntime",
        "__version__ = '1.24.4'\n"
        "def get_available_providers(): return ['CUDAExecutionProvider', 'CPUExecutionProvider']\n"
        "class InferenceSession:\n"
        "    def __init__(self, model, providers): pass\n"
        f"    def get_providers(self): return ['{loaded}ExecutionProvider']\n",
    )
    found = probe_package("onnxruntime")
    assert found.details["cuda"] == said
    line = finding("onnxruntime", gpu=True, onnxruntime=found)
    assert line.state == ("ok" if said == "loads" else "problem")


def test_both_onnxruntimes_at_once_are_a_problem(path: Path) -> None:
    (path / "onnxruntime_gpu-1.24.4.dist-info").mkdir()
    (path / "onnxruntime_gpu-1.24.4.dist-info" / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.24.4\n")
    for gpu, kept in ((False, "onnxruntime"), (True, "onnxruntime-gpu")):
        line = finding("onnxruntime", gpu=gpu, onnxruntime=probe_package("onnxruntime"))
        assert line.state == "problem"
        assert "onnxruntime-gpu 1.24.4 are both installed" in line.found
        assert line.command == f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {kept}"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed with SIGSEGV"),
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "ImportError: libnvinfer.so.10"),
        ("import a_dependency_that_is_not_there", "No module named 'a_dependency_that_is_not_there'"),
        ("raise SystemExit(4)", "failed with exit code 4"),
    ],
)
def test_a_broken_tensorrt_is_a_line(path: Path, code: str, said: str) -> None:
    package(path, "tensorrt", code)
    line = finding("tensorrt", gpu=True, tensorrt=probe_package("tensorrt"))
    assert line.state == "problem"
    assert said in line.found


def test_a_folder_of_that_name_is_no_tensorrt(path: Path) -> None:
    (path / "tensorrt").mkdir()
    assert probe_package("tensorrt") == Package()


@pytest.mark.parametrize(
    ("version", "state"), [("10.12.0.36", "ok"), ("11.4.0.1", "ok"), ("10.11.0.33", "problem"), ("8.6.1", "problem")]
)
def test_tensorrt_has_an_oldest_version(path: Path, version: str, state: str) -> None:
    package(path, "tensorrt", f"__version__ = '{version}'")
    found = probe_package("tensorrt")
    assert finding("tensorrt", gpu=True, tensorrt=found).state == state
    assert usable_tensorrt({"tensorrt": found}) == (version if state == "ok" else None)


def test_without_a_gpu_nobody_needs_tensorrt() -> None:
    assert finding("tensorrt").state == "not needed"
    assert finding("tensorrt", gpu=True).state == "missing"


@pytest.mark.parametrize(
    ("cuda", "available", "gpu", "state", "said"),
    [
        ("13.0", True, True, "ok", "with CUDA 13.0"),
        ("13.0", False, False, "ok", "on the CPU (built with CUDA 13.0)"),
        (None, False, False, "ok", "on the CPU"),
        (None, False, True, "problem", "built without CUDA"),
        ("13.0", False, True, "problem", "whose CUDA 13.0 does not start"),
    ],
)
def test_torch_and_its_cuda(cuda: str | None, available: bool, gpu: bool, state: str, said: str) -> None:
    line = finding("torch", gpu=gpu, torch=Package("2.14.1", {"cuda": cuda, "cuda_available": available}))
    assert line.state == state
    assert said in line.found


def test_what_is_missing_names_the_extra() -> None:
    assert finding("torch").command == install_command("cpu")
    assert finding("open_clip", gpu=True).command == install_command("gpu")
    assert finding("onnxruntime").command == install_command("runtime")


def test_version_numbers() -> None:
    assert version_numbers("10.16.0.72") == (10, 16, 0, 72)
    assert version_numbers("11.4rc1.2") == (11, 4)
    assert version_numbers("dev") == ()
