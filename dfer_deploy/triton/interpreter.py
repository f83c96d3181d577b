"""The choice of a Python for the embedded server's models: 3.10 to 3.12, with its shared library."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_deploy.errors import ServerError

SUPPORTED = ((3, 12), (3, 11), (3, 10))
"""The versions that NumPy 1.26, the server's wheel and onnxruntime all support, the newest first."""

_PROBE = """
import ctypes, json, os, sys, sysconfig
name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
own = [path for path in (os.path.join(folder, name) for folder in folders) if os.path.isfile(path)]
try:
    ctypes.CDLL(name)
    system = True
except OSError:
    system = False
print(json.dumps({"version": list(sys.version_info[:3]), "own": own[:1], "system": system}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A usable Python.

    Attributes:
        executable: path of the executable.
        version: major, minor and micro version.
        libpython: path of its ``libpython3.X.so.1.0``; None if the system's loader finds one.
    """

    executable: Path
    version: tuple[int, int, int]
    libpython: Path | None


def choose_interpreter() -> Interpreter:
    """Choose the running Python if it is usable, otherwise the newest usable one on PATH.

    Raises:
        DferDeployError: no Python is usable. The error states what to install.
    """
    without_library: list[str] = []
    names = [f"python{major}.{minor}" for major, minor in SUPPORTED]
    for candidate in [sys.executable, *filter(None, map(shutil.which, names))]:
        facts = _probe(candidate)
        if facts is None or facts["version"][:2] not in [list(version) for version in SUPPORTED]:
            continue
        major, minor, micro = facts["version"]
        if facts["own"]:
            return Interpreter(Path(candidate), (major, minor, micro), Path(facts["own"][0]))
        if facts["system"]:
            return Interpreter(Path(candidate), (major, minor, micro), None)
        without_library.append(f"{major}.{minor}")
    running = ".".join(map(str, sys.version_info[:2]))
    if without_library:
        version = without_library[0]
        raise ServerError(
            f"the embedded server needs libpython{version}.so.1.0, which Python {version} came without; "
            f"install it, on Debian and Ubuntu with: apt install libpython{version}"
        )
    raise ServerError(
        f"the embedded server needs Python 3.10, 3.11 or 3.12 (this is {running}, and PATH has none of them); "
        "install one, on Debian and Ubuntu for example with: apt install python3.11 python3.11-venv libpython3.11"
    )


def _probe(executable: str) -> dict[str, Any] | None:
    """The facts that a Python reports, or None if it does not run (a version manager's shim, for example)."""
    try:
        done = subprocess.run([executable, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True)
        facts: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return facts
