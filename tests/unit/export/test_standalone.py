"""One file from several modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dfer_deploy.export.standalone import build_engines_source, joined

LOW = ("low.py", '"""Low."""\n\nimport os\nfrom typing import Any\n\nHERE: Any = os.curdir\n')
HIGH = ("high.py", '"""High."""\n\nimport os\n\nfrom dfer_deploy.low import (\n    HERE,\n)\n\nprint(HERE, os.sep)\n')


def test_parts_become_one_file_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text(joined([LOW, HIGH]))
    assert ast.get_docstring(ast.parse(path.read_text())) == "High."
    assert path.read_text().count("import os") == 1
    done = subprocess.run([sys.executable, "-I", path], capture_output=True, text=True, check=True)
    assert done.stdout == ". /\n"


def test_what_would_not_run_alone_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match=r"high.py imports 'HERE' from dfer_deploy.low, which is not a part before"):
        joined([HIGH])
    with pytest.raises(RuntimeError, match=r"other.py defines 'HERE', which low.py defines too"):
        joined([LOW, ("other.py", LOW[1])])


def test_the_builder_of_engines_imports_nothing_but_the_standard_library() -> None:
    assert build_engines_source() == build_engines_source()
    nodes = list(ast.walk(ast.parse(build_engines_source())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    # TensorRT for type checkers only; NumPy where a dataclass has arrays, which no record of an engine has.
    assert roots - sys.stdlib_module_names == {"tensorrt", "numpy"}
