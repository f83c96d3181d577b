"""What the processes that dfer-deploy starts get of the caller's world: environment variables and working directory.

A server, its models, pip and perf_analyzer must not depend on where and how dfer-deploy was called. Python executes
files of the working directory and of PYTHONPATH, bash the file in BASH_ENV, and pip obeys a dozen places. Every child
process gets its variables here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

WORKING_DIRECTORY = "/"
"""Where every child process runs. Python's ``import random`` executes a ``random.py`` in the working directory."""

PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")
"""Variables that lead to a proxy, also in upper case. gRPC does not know the ``*`` of ``no_proxy``."""

_DROPPED_PREFIXES = ("PYTHON", "PIP_", "BASH_FUNC_")
_DROPPED = ("VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "BASH_ENV", "BASHOPTS", "SHELLOPTS", "ENV", "CDPATH", "GLOBIGNORE")

_PR_SET_PDEATHSIG = 1


def child_environment(*, proxies: bool = False) -> dict[str, str]:
    """Build the environment variables of a child process: the caller's without those that change what it executes.

    Args:
        proxies: keep the caller's proxies, for a process that reaches other machines.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_DROPPED_PREFIXES) and name not in _DROPPED and (proxies or name.lower() not in PROXIES)
    }


def own_environment() -> dict[str, str]:
    """Build the environment variables for another process of this Python, which needs all of the caller's.

    Files of the working directory, such as a ``random.py``, are kept out of its imports unless they are among this
    process's own. Python obeys the variable since 3.11.
    """
    here = {"", os.curdir, os.path.realpath(os.curdir)} & set(sys.path)
    return dict(os.environ) | ({} if here else {"PYTHONSAFEPATH": "1"})


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends in any way. To be called in the child, on Linux.

    A forked child that runs another program keeps the setting (``preexec_fn`` of ``subprocess``).
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)
