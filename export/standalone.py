"""Join modules of this package to one file that runs without the package."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib import resources

BUILD_ENGINES = (
    "errors.py",
    "plain_data.py",
    "hardware.py",
    "bundles/engine_records.py",
    "bundles/engine_builds.py",
    "export/engine.py",
    "export/bundle_engines.py",
)
"""The parts of ``build_engines.py`` in a bundle. A part may import only from those before it."""

_PACKAGE = "dfer_deploy"


def build_engines_source() -> str:
    """Return the text of ``build_engines.py``, which needs only TensorRT's Python module and the standard library."""
    root = resources.files(_PACKAGE)
    return joined([(name, root.joinpath(name).read_text(encoding="utf-8")) for name in BUILD_ENGINES])


def joined(parts: Sequence[tuple[str, str]]) -> str:
    """Return one module with the content of several; the same parts give the same bytes.

    Imports come first, each once; those of other parts are omitted. The docstring is the last part's.

    Args:
        parts: name (for example ``export/engine.py``) and source of each module, in the order of their imports.

    Raises:
        RuntimeError: a part imports a module of this package that is not a part before it, or two parts define the same
            name. Both are bugs.
    """
    imports: dict[str, None] = {}
    bodies: list[str] = []
    owners: dict[str, str] = {}
    docstring = ""
    for name, source in parts:
        tree = ast.parse(source)
        lines = source.splitlines()
        docstring = ast.get_source_segment(source, tree.body[0]) or ""
        omitted = set(range(1, (tree.body[0].end_lineno or 1) + 1))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                omitted.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _PACKAGE:
                    _check_import(name, node, owners)
                else:
                    imports[ast.unparse(node)] = None
            for defined in _names(node):
                if owners.setdefault(defined, name) != name:
                    raise RuntimeError(f"{name} defines {defined!r}, which {owners[defined]} defines too")
        body = "\n".join(line for number, line in enumerate(lines, 1) if number not in omitted)
        bodies.append(f"# From dfer_deploy/{name}\n\n{body.strip()}")
    future = "from __future__ import annotations"
    others = "\n".join(sorted(line for line in imports if line != future))
    head = f"#!/usr/bin/env python3\n{docstring}\n\n{future}\n\n{others}"
    return "\n\n\n".join([head, *bodies]) + "\n"


def _check_import(name: str, node: ast.ImportFrom, owners: dict[str, str]) -> None:
    source = f"{(node.module or '').partition('.')[2].replace('.', '/')}.py"
    for alias in node.names:
        if owners.get(alias.name) != source or alias.asname is not None:
            raise RuntimeError(f"{name} imports {alias.name!r} from {node.module}, which is not a part before it")


def _names(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
