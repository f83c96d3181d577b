"""Errors that a user's input can cause. Each class has a ``code`` for programs; the message is one sentence for people.

DferDeployError                 error
├── SettingError                setting          an argument, an option or a field is out of range, or two contradict
├── MissingExtraError           missing_extra    an optional package is not installed
├── CheckpointError             checkpoint       a checkpoint or a file of weights cannot be used
├── ClipError                   clip             a video, a frame, an image or a list of clips cannot be used
├── BundleError                 bundle           a bundle is damaged, of another version, or does not fit
│   └── EngineError             engine           a TensorRT engine cannot be built, read or run
├── RuntimeUnavailableError     runtime          what should run the graphs does not run here
├── ServerError                 server           a server cannot be installed, started or measured
├── CallError                   (seven codes)    a request got no answer; see ``client.failures``
├── ResultError                 result           a file of results or limits cannot be read
├── TrainingError               training         a recipe, a data set or a run cannot be used
└── OutputError                 output           something cannot be written
"""

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
    """A mistake in usage or input, in one sentence: the value, what was expected, what to do.

    The command line prints the message without a traceback and exits with 2.

    Attributes:
        code: what kind of mistake it is, for programs; messages may change from version to version, codes may not.
    """

    code = "error"


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


class EngineError(BundleError):
    """A TensorRT engine cannot be built, read or run."""

    code = "engine"


class RuntimeUnavailableError(DferDeployError):
    """What should run the graphs does not run here."""

    code = "runtime"


class ServerError(DferDeployError):
    """A server cannot be installed, started or measured."""

    code = "server"


class ResultError(DferDeployError):
    """A file of results, of saved answers or of limits cannot be read."""

    code = "result"


class TrainingError(DferDeployError):
    """A recipe, a data set or a run cannot be used."""

    code = "training"


class OutputError(DferDeployError):
    """Something cannot be written, such as to a full disk."""

    code = "output"


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


def missing_extra(package: str, extra: str, what: str) -> MissingExtraError:
    """Return the error for something whose optional dependency is not installed."""
    return MissingExtraError(
        f"{what} needs the package {package!r}; install it with: pip install 'dfer-deploy[{extra}]'"
    )


def missing_package(error: ModuleNotFoundError, what: str) -> MissingExtraError:
    """Return the error for an import that failed; raise it again where no extra brings the package."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return missing_extra(package, EXTRAS[package], what)
