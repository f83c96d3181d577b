"""Errors that a user's input can cause. Each class has a ``code`` for programs; the message is one sentence for people.

DferDeployError                 error
├── SettingError                setting          an argument, an option or a field is out of range, or two contradict
├── MissingExtraError           missing_extra    an optional package is not installed
├── CheckpointError             checkpoint       a checkpoint or a file of weights cannot be used
├── ClipError                   clip             a video, a frame, an image or a list of clips cannot be used
├── BundleError                 bundle           a bundle is damaged, of another version, or does not fit
│   ├── ConfigurationError      configuration    a file that `configure` writes again is missing or damaged
│   └── EngineError             engine           a TensorRT engine cannot be built, read or run
├── RuntimeUnavailableError     runtime          what should run the graphs does not run here
├── ServerError                 server           a server cannot be installed, started or measured
│   └── ServerDiedError         server_died      a server that had been started ended by itself
├── CallError                   call             a request got no answer
│   ├── ServerUnavailableError  unavailable      no connection, or it broke before the answer
│   ├── QueueFullError          queue_full       the server's queue is full
│   ├── DeadlineExceededError   deadline_exceeded
│   ├── ModelNotFoundError      model_not_found  the server has no such model
│   ├── MixedAnswerError        mixed_answer     the server mixed the request with another one
│   ├── MixedServersError       mixed_servers    servers of different weights answer a stream in turn
│   └── RequestRefusedError     refused          the same request would be refused again
│       └── IncompatibleServerError  incompatible_server
├── ResultError                 result           a file of results or limits cannot be read
├── TrainingError               training         a recipe, a data set or a run cannot be used
├── WriteError                  write            a file cannot be written, or would replace another
└── OutputError                 output           what a command prints cannot be written
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from contextvars import ContextVar
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Process exit codes of every command."""

    DONE = 0
    GATE_FAILED = 1
    WRONG_INPUT = 2
    UNDECIDED = 3
    """Too few clips to tell; nothing failed."""
    SERVER_DIED = 4
    """A server that had been started ended by itself."""


class DferDeployError(Exception):
    """A mistake in usage or input, in one sentence: the value, what was expected, what to do.

    The command line prints the message without a traceback and exits with ``exit_code``.

    Attributes:
        code: what kind of mistake it is, for programs; messages may change from version to version, codes may not.
        exit_code: exit code of a command that it ends.
    """

    code = "error"
    exit_code = ExitCode.WRONG_INPUT


class SettingError(DferDeployError):
    """An argument, an option or a field is out of range, or two of them contradict each other."""

    code = "setting"


class MissingExtraError(DferDeployError, ImportError):
    """An optional package is not installed."""

    code = "missing_extra"


class CheckpointError(DferDeployError):
    """A checkpoint or a file of weights cannot be used."""

    code = "checkpoint"


class ClipError(DferDeployError):
    """A video, a frame, an image or a list of clips cannot be used."""

    code = "clip"


class BundleError(DferDeployError):
    """A bundle is damaged, of another version, or does not fit what is asked of it."""

    code = "bundle"


class ConfigurationError(BundleError):
    """A file of a bundle that ``dfer-deploy configure`` writes again is missing or damaged."""

    code = "configuration"


class EngineError(BundleError):
    """A TensorRT engine cannot be built, read or run."""

    code = "engine"


class RuntimeUnavailableError(DferDeployError):
    """What should run the graphs does not run here."""

    code = "runtime"


class ServerError(DferDeployError):
    """A server cannot be installed, started or measured."""

    code = "server"


class ServerDiedError(ServerError):
    """A server that had been started ended by itself."""

    code = "server_died"
    exit_code = ExitCode.SERVER_DIED


class CallError(DferDeployError):
    """A request got no answer.

    Attributes:
        retryable: whether the same request may succeed a little later.
    """

    code = "call"
    retryable = False


class ServerUnavailableError(CallError):
    """There is no connection to the server, or it broke before the answer."""

    code = "unavailable"
    retryable = True


class QueueFullError(CallError):
    """The server's queue is full.

    The server refused at once, before any work, and asks for a later attempt (gRPC's UNAVAILABLE, HTTP's 503); backoff
    that grows and differs between clients lets it recover.
    """

    code = "queue_full"
    retryable = True


class DeadlineExceededError(CallError):
    """The server did not answer within the deadline."""

    code = "deadline_exceeded"


class ModelNotFoundError(CallError):
    """The server has no such model."""

    code = "model_not_found"


class MixedServersError(CallError):
    """Servers of different weights answer in turn, so a stream cannot go on."""

    code = "mixed_servers"
    retryable = True


class MixedAnswerError(CallError):
    """The server mixed the request with another one. The answer is discarded; the same request may be sent again."""

    code = "mixed_answer"
    retryable = True


class RequestRefusedError(CallError):
    """The server, or the client itself, would refuse the same request again."""

    code = "refused"


class IncompatibleServerError(RequestRefusedError):
    """A server of another version of dfer-deploy, or of another model than when the client connected."""

    code = "incompatible_server"


class ResultError(DferDeployError):
    """A file of results, of saved answers or of limits cannot be read."""

    code = "result"


class TrainingError(DferDeployError):
    """A recipe, a data set or a run cannot be used."""

    code = "training"


class WriteError(DferDeployError):
    """A file cannot be written, or would replace an input or another output."""

    code = "write"


class OutputError(DferDeployError):
    """What a command prints cannot be written, such as to a full disk."""

    code = "output"


_IN_A_COMMAND = ContextVar("in_a_command", default=False)

_FLAGS = {
    "concurrencies": "--concurrency",
    "output": "-o",
    "own_test_list": "--other-list",
    "runtimes": "--runtime",
    "urls": "--url",
}
"""The options of the command line whose names are not those of Python's arguments."""


@contextlib.contextmanager
def command_line_spelling() -> Iterator[None]:
    """Spell options as the command line does while this context lasts; see ``spelled``."""
    token = _IN_A_COMMAND.set(True)
    try:
        yield
    finally:
        _IN_A_COMMAND.reset(token)


def spelled(name: str, value: object = None) -> str:
    """Spell an option in a message as the caller types it: ``keep_fp32=('a', 'b')``, in a command ``--keep-fp32 a,b``.

    Args:
        name: name of the argument or of the options' field in Python.
        value: value to give; a truth value stands for a switch; None for the bare name.
    """
    if not _IN_A_COMMAND.get():
        return name if value is None else f"{name}={value!r}"
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value is None or isinstance(value, bool):
        return flag
    return f"{flag} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


EXTRAS = {
    "onnxruntime": "runtime",
    "scipy": "runtime",
    "torch": "cpu",
    "open_clip": "cpu",
    "onnx": "cpu",
    "matplotlib": "report",
    "jinja2": "report",
    "openai": "describe",
}
"""The extra that brings each optional package."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra, from a checkout for a checkout and from an index for anybody else."""
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    return f"pip install 'dfer-deploy[{extra}]'"


def missing_extra(package: str, extra: str, what: str) -> MissingExtraError:
    """Return the error for something whose optional dependency is not installed."""
    return MissingExtraError(f"{what} needs the package {package!r}; install it with: {install_command(extra)}")


@contextlib.contextmanager
def extras_named(what: str) -> Iterator[None]:
    """Name the extra to install if an import fails in this context, or in a function with this decorator.

    Raises:
        MissingExtraError: an optional package is not installed; ``what`` needs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_package(error, what) from error


def missing_package(error: ModuleNotFoundError, what: str) -> MissingExtraError:
    """Return the error for an import that failed; raise it again where no extra brings the package."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return missing_extra(package, EXTRAS[package], what)
