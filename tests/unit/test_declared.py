"""What the code imports is what ``pyproject.toml`` declares, so that nothing works by luck."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

ELSEWHERE = {"triton_python_backend_utils", "image_decoding", "model_requests", "receipts", "cgroups", "triton_models"}
"""Modules of Triton, and those beside a model.py."""


def imported() -> dict[str, str]:
    """The top-level modules that the package imports from elsewhere, with a file that does."""
    found = {}
    for folder in ("dfer_deploy", "train", "export", "triton_models"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.append(node.module)
                found |= {name.split(".")[0]: str(path) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | ELSEWHERE}


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for name in extras if name not in ("dev", "docs") for line in extras[name]),
    ]
    declared = {re.split(r"[\[><=; ]", line)[0].lower().replace("_", "-") for line in lines} | {"dfer-deploy"}
    packages = metadata.packages_distributions()
    undeclared = {}
    for name, path in imported().items():
        owners = {owner.lower().replace("_", "-") for owner in packages.get(name, [name])}
        # tensorrt-rtx is a builder for the tests, pandas only where it is asked for.
        if not owners & declared and name not in ("dfer_deploy", "tensorrt_rtx", "pandas", "google"):
            undeclared[name] = path
    assert undeclared == {}
