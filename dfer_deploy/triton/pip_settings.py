"""The user's settings of pip that the private environment obeys: where packages come from, not which and whereto."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
from collections.abc import Iterable

from dfer_deploy.machine.children import WORKING_DIRECTORY, child_environment

OF_THE_NETWORK = (
    "cert", "client-cert", "default-timeout", "extra-index-url", "find-links", "index-url", "no-index", "proxy",
    "retries", "timeout", "trusted-host",
)  # fmt: skip
"""Settings without which pip cannot reach the index of a company. All others, such as constraints, are dropped."""

_TIMEOUT_S = 60.0


def pip_variables(python: str) -> dict[str, str]:
    """Build the variables of a pip that obeys only the settings ``OF_THE_NETWORK`` of the user and of the machine.

    Args:
        python: the Python whose pip is asked for its settings.
    """
    # pip's own variables are needed here, because they take precedence over its files.
    asked = child_environment() | {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    lines: list[str] = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [python, "-I", "-m", "pip", "config", "list"], env=asked, cwd=WORKING_DIRECTORY,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=True,
        )  # fmt: skip
        lines = done.stdout.splitlines()
    return network_settings(lines) | {"PIP_CONFIG_FILE": os.devnull, "PIP_USER": "0"}


def network_settings(lines: Iterable[str]) -> dict[str, str]:
    """Return the variables for the settings ``OF_THE_NETWORK`` among the lines of ``pip config list``.

    A section of ``install`` takes precedence over the global one, and a variable over both, as in pip itself.
    """
    found: dict[tuple[str, str], str] = {}
    for line in lines:
        if match := re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=(.+)", line.strip()):
            with contextlib.suppress(ValueError, SyntaxError):
                found[match[1], match[2]] = str(ast.literal_eval(match[3]))
    return {
        f"PIP_{name.upper().replace('-', '_')}": " ".join(found[section, name].split())
        for section in ("global", "install", ":env:")
        for name in OF_THE_NETWORK
        if (section, name) in found
    }
