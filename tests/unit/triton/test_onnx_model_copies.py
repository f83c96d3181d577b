"""The packed copies of large graphs that instances of the Python-backend model open."""

from __future__ import annotations

import os
import runpy
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from python_backend import Logger

from dfer_deploy.triton import environment

FEATURES = 3


def features(batch: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, time, FEATURES)).astype(np.float32)


@pytest.fixture
def packing(source: Path) -> dict[str, Any]:
    """What model.py defines, with a graph beside it that is large enough to be packed: ``y`` = x W."""
    functions = runpy.run_path(str(source))["TritonPythonModel"].initialize.__globals__
    functions["PACKED_FROM_BYTES"] = 0
    weight = np.random.default_rng(0).standard_normal((FEATURES, 512)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 512])],
        [numpy_helper.from_array(weight, "w")],
    )
    saved = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(saved, source.with_name("model.onnx"))
    return functions


def answer(session: Any) -> bytes:
    (y,) = session.run(None, {"x": features(1, 4)[0]})
    return bytes(y.tobytes())


def packed_copies(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "packed").iterdir() if path.is_dir())


def test_instances_open_one_packed_copy_and_answer_the_same(packing: dict[str, Any], tmp_path: Path) -> None:
    graph = tmp_path / "1" / "model.onnx"
    plain = packing["_session"](graph, packing["_session_options"](1, 0))
    opened: list[str] = []
    session = packing["_session"]

    def counting(path: Path, options: Any) -> Any:
        opened.append(path.name if path.parent == graph.parent else path.parent.name)
        return session(path, options)

    packing["_session"] = counting
    with ThreadPoolExecutor(4) as pool:
        sessions = list(pool.map(lambda _: packing["_opened"](graph, 1, 0), range(4)))
    (copy,) = packed_copies(tmp_path / "cache")
    assert sorted(opened) == sorted(["model.onnx", *[copy.name] * 4])
    assert {answer(session) for session in sessions} == {answer(plain)}
    assert Logger.warnings == []
    assert sorted(path.name for path in graph.parent.iterdir()) == [
        "cgroups.py",
        "model.onnx",
        "model.py",
        "model_requests.py",
        "receipts.py",
    ]


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "complete.json"])
def test_a_damaged_copy_is_made_again(packing: dict[str, Any], tmp_path: Path, name: str) -> None:
    graph = tmp_path / "1" / "model.onnx"
    right = answer(packing["_opened"](graph, 1, 0))
    (copy,) = packed_copies(tmp_path / "cache")
    damaged = bytearray((copy / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (copy / name).write_bytes(damaged)
    assert answer(packing["_opened"](graph, 1, 0)) == right
    assert packed_copies(tmp_path / "cache") == [copy]
    assert (copy / name).read_bytes() != bytes(damaged)


def test_without_a_place_for_the_copy_the_graph_itself_is_opened(
    packing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "1" / "model.onnx"
    right = answer(packing["_opened"](graph, 1, 0))
    (tmp_path / "file").touch()
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path / "file"))
    assert answer(packing["_opened"](graph, 1, 0)) == right
    (warning,) = Logger.warnings
    assert "every instance holds its own weights (NotADirectoryError" in warning


def test_a_full_disk_leaves_nothing(packing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1))
    packing["_opened"](tmp_path / "1" / "model.onnx", 1, 0)
    assert "less than 0.0 GB free" in Logger.warnings[0]
    assert packed_copies(tmp_path / "cache") == []


def test_old_copies_and_what_a_killed_process_left_are_removed(packing: dict[str, Any], tmp_path: Path) -> None:
    names = [f"old{age}" for age in range(packing["PACKED_COPIES"] + 1)]
    for age, name in enumerate([*names, "killed.part"]):
        (tmp_path / "cache" / "packed" / name).mkdir(parents=True)
        os.utime(tmp_path / "cache" / "packed" / name, (1e9 - age, 1e9 - age))
    packing["_opened"](tmp_path / "1" / "model.onnx", 1, 0)
    left = [path.name for path in packed_copies(tmp_path / "cache")]
    assert len(left) == packing["PACKED_COPIES"]
    assert [name for name in left if name.startswith("old")] == names[: packing["PACKED_COPIES"] - 1]


def test_the_copy_belongs_to_onnxruntime_and_graph(packing: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = packing["_packed_name"]
    before = name("a" * 64)
    assert before == name("a" * 64)
    assert before != name("b" * 64)
    monkeypatch.setattr(packing["onnxruntime"], "__version__", "0.0")
    assert before != name("a" * 64)


def test_it_finds_the_cache_folder_of_the_package(packing: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ({environment.CACHE_VARIABLE: "relative"}, {"XDG_CACHE_HOME": "/elsewhere"}, {}):
        for variable in (environment.CACHE_VARIABLE, "XDG_CACHE_HOME"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        assert packing["cache_folder"]() == environment.cache_folder()


def test_a_file_system_without_locks_has_a_copy_too(
    packing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    packing["_opened"](tmp_path / "1" / "model.onnx", 1, 0)
    assert Logger.warnings == []
    assert len(packed_copies(tmp_path / "cache")) == 1
