"""The one exception class that a user's input can cause."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes of every command."""

    DONE = 0
    GATE_FAILED = 1
    WRONG_INPUT = 2
    UNDECIDED = 3
    """Too few clips to tell; nothing failed."""


class DferDeployError(Exception):
    """A mistake in usage or input, told in one sentence: the value, what was expected, what to do.

    The command line prints the message without a traceback and exits with 2.
    """


class OutputError(DferDeployError):
    """What a command prints cannot be written, such as to a full disk."""


def missing_extra(package: str, extra: str, what: str) -> DferDeployError:
    """The error for a command whose optional dependency is not installed."""
    return DferDeployError(f"{what} needs the package {package!r}; install it with: pip install 'dfer-deploy[{extra}]'")
