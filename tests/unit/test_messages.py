"""Messages name options as their reader types them: in Python without dashes, in a command with them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy import CheckpointError, SettingError, VerifyOptions, inspect_checkpoint
from dfer_deploy.errors import command_line_spelling, spelled

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("api", "bundles", "checkpoints", "client", "clips", "inference", "measurement", "runtimes", "verification")
"""The rooms whose messages a caller of the Python interface sees, besides ``export``."""


@pytest.mark.parametrize(
    ("name", "value", "in_python", "typed"),
    [
        ("force", True, "force=True", "--force"),
        ("data_root", None, "data_root", "--data-root"),
        ("precision", "fp16", "precision='fp16'", "--precision fp16"),
        ("keep_fp32", ("a", "b"), "keep_fp32=('a', 'b')", "--keep-fp32 a,b"),
        ("runtimes", ("triton",), "runtimes=('triton',)", "--runtime triton"),
        ("own_test_list", False, "own_test_list=False", "--other-list"),
        ("output", None, "output", "-o"),
    ],
)
def test_an_option_is_spelled_as_the_caller_types_it(name: str, value: object, in_python: str, typed: str) -> None:
    assert spelled(name, value) == in_python
    with command_line_spelling():
        assert spelled(name, value) == typed
    assert spelled(name, value) == in_python


def test_python_and_the_command_name_one_mistake_in_their_own_words(cli: Any, own_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="; omit prompt_position"):
        inspect_checkpoint(own_checkpoint, prompt_position="middle")
    output = cli("inspect", own_checkpoint, "--prompt-position", "middle").output
    assert "omit --prompt-position" in " ".join(output.split())
    with pytest.raises(SettingError, match="give either checkpoint or baseline"):
        VerifyOptions()


def test_no_message_names_only_an_option_of_the_command_line() -> None:
    """A whole command (``dfer-deploy …``) may be named, and a word of a command that is run or printed."""
    files = [path for room in ROOMS for path in (ROOT / "dfer_deploy" / room).rglob("*.py")]
    files += [path for path in (ROOT / "export").glob("*.py") if path.name != "bundle_engines.py"]
    named = []
    for path in [*files, ROOT / "dfer_deploy" / "files.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        others = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        others |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            is_message = isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in others
            text = ast.unparse(node) if is_message else ""
            if re.search(r"(?<![\w-])--[a-z]", text) and "dfer-deploy" not in text and " " in text:
                named.append(f"{path.name}:{node.lineno}: {text}")
    assert named == []
