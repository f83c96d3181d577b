"""Every call to TensorRT, held against the types of 10.13 and a module with the API of 11; none is executed."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.runtimes import engine_tensors, tensorrt_engine

SOURCE = Path(tensorrt_engine.__file__)

CLASSES = {
    "module": "",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""What a variable of this name is, everywhere in the source."""


def calls_and_attributes() -> list[tuple[str, str, ast.Call | None]]:
    """Everything that the source asks of TensorRT's objects: variable, attribute, and the call if it is one."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [
        (node.value.id, node.attr, called.get(id(node)))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in CLASSES
    ]


def signatures(method: Any) -> list[tuple[int, int]]:
    """The least and the largest number of arguments of each overload, as pybind11 documents them, without ``self``."""
    counts = []
    for line in re.findall(r"^(?:\d+\. )?\w+\((self: .*?)\) -> ", inspect.getdoc(method) or "", re.MULTILINE):
        arguments = re.findall(r"(?:^|, )(\w+): ([^=]*?)(= .*?)?(?=, \w+: |$)", line)[1:]
        counts.append((sum(not default for _, _, default in arguments), len(arguments)))
    return counts


def test_the_source_is_read() -> None:
    found = {(CLASSES[name], attribute) for name, attribute, _ in calls_and_attributes()}
    for used in (
        ("Runtime", "deserialize_cuda_engine"),
        ("Runtime", "engine_host_code_allowed"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("IExecutionContext", "set_input_shape"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
        ("", "ExecutionContextAllocationStrategy"),
    ):
        assert used in found


def test_every_call_exists_in_the_api_of_11() -> None:
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="the TensorRT-RTX module, which has the API of 11, is not installed"
    )
    for name, attribute, call in calls_and_attributes():
        owner = getattr(trt, CLASSES[name]) if CLASSES[name] else trt
        assert hasattr(owner, attribute), f"{CLASSES[name]}.{attribute} is gone"
        if call is None or not CLASSES[name]:
            continue
        assert not call.keywords, f"{attribute}: names of arguments have changed between releases"
        allowed = signatures(getattr(owner, attribute))
        assert any(low <= len(call.args) <= high for low, high in allowed), (attribute, len(call.args), allowed)
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED.name == "USER_MANAGED"
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    assert set(engine_tensors.DTYPES.values()) <= set(trt.DataType.__members__)
    assert {"ERROR", "INTERNAL_ERROR"} <= set(trt.ILogger.Severity.__members__)
    assert trt.Dims((2, -1, 3))[:] == (2, -1, 3)


def test_every_call_fits_the_types_of_10(tmp_path: Path) -> None:
    """The stubs of 10.13 hold five lines that are no Python; in a copy they are mended, and mypy reads that copy."""
    found = importlib.util.find_spec("tensorrt_bindings")
    stubs = None if found is None else Path(next(iter(found.submodule_search_locations or ())), "tensorrt.pyi")
    if stubs is None or not stubs.is_file():
        pytest.skip("the package tensorrt-stubs is not installed")
    pytest.importorskip("mypy")
    text = stubs.read_text(encoding="utf-8")
    text = text.replace("channel_axis: int)", "channel_axis: int = ...)").replace(", in: list[", ", in_: list[")
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text(text + "\n__version__: str\n", encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nmypy_path = $MYPY_CONFIG_FILE_DIR\nfollow_imports = skip\nignore_missing_imports = True\n"
        "[mypy-tensorrt.*]\nfollow_imports = normal\nignore_errors = True\n",
        encoding="utf-8",
    )
    good = SOURCE.read_text(encoding="utf-8")
    for content, verdict in ((good, 0), (good.replace("execute_async_v3", "enqueue_v3"), 1)):
        (tmp_path / "checked.py").write_text(content, encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "checked.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == verdict, done.stdout + done.stderr
    assert '"IExecutionContext" has no attribute "enqueue_v3"' in done.stdout
