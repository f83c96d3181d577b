"""Train DFER-CLIP, and take a trained checkpoint to a verified Triton deployment."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dfer_deploy.errors import (
    BundleError,
    CallError,
    CheckpointError,
    ClipError,
    ConfigurationError,
    DeadlineExceededError,
    DferDeployError,
    EngineError,
    IncompatibleServerError,
    MissingExtraError,
    MixedServersError,
    ModelNotFoundError,
    OutputError,
    QueueFullError,
    RequestRefusedError,
    ResultError,
    RuntimeUnavailableError,
    ServerError,
    ServerUnavailableError,
    SettingError,
    TrainingError,
    WriteError,
    missing_package,
)

if TYPE_CHECKING:
    from dfer_deploy.api.bench_bundle import BenchOptions, bench_bundle
    from dfer_deploy.api.build_engines import build_engines
    from dfer_deploy.api.evaluate_checkpoint import evaluate_checkpoint
    from dfer_deploy.api.export_bundle import export_bundle
    from dfer_deploy.api.inspect_checkpoint import inspect_checkpoint
    from dfer_deploy.api.load_bundle import load_bundle
    from dfer_deploy.api.verify_bundle import verify_bundle
    from dfer_deploy.api.verify_options import VerifyOptions
    from dfer_deploy.bundles.engine_records import BuildOptions
    from dfer_deploy.client import AsyncClient, Client
    from dfer_deploy.export.pipeline import ExportOptions

_PLACES = {
    "AsyncClient": "client",
    "BenchOptions": "api.bench_bundle",
    "BuildOptions": "bundles.engine_records",
    "Client": "client",
    "ExportOptions": "export.pipeline",
    "VerifyOptions": "api.verify_options",
    "bench_bundle": "api.bench_bundle",
    "build_engines": "api.build_engines",
    "evaluate_checkpoint": "api.evaluate_checkpoint",
    "export_bundle": "api.export_bundle",
    "inspect_checkpoint": "api.inspect_checkpoint",
    "load_bundle": "api.load_bundle",
    "verify_bundle": "api.verify_bundle",
}

__all__ = [
    "AsyncClient",
    "BenchOptions",
    "BuildOptions",
    "BundleError",
    "CallError",
    "CheckpointError",
    "Client",
    "ClipError",
    "ConfigurationError",
    "DeadlineExceededError",
    "DferDeployError",
    "EngineError",
    "ExportOptions",
    "IncompatibleServerError",
    "MissingExtraError",
    "MixedServersError",
    "ModelNotFoundError",
    "OutputError",
    "QueueFullError",
    "RequestRefusedError",
    "ResultError",
    "RuntimeUnavailableError",
    "ServerError",
    "ServerUnavailableError",
    "SettingError",
    "TrainingError",
    "VerifyOptions",
    "WriteError",
    "__version__",
    "bench_bundle",
    "build_engines",
    "evaluate_checkpoint",
    "export_bundle",
    "inspect_checkpoint",
    "load_bundle",
    "verify_bundle",
]

__version__ = "0.2.0.dev0"


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import what is public when it is asked for, so that the command line starts at once."""
    if name in _PLACES:
        try:
            return getattr(importlib.import_module(f"dfer_deploy.{_PLACES[name]}"), name)
        except ModuleNotFoundError as error:
            raise missing_package(error, f"dfer_deploy.{name}") from error
    raise AttributeError(f"module 'dfer_deploy' has no attribute {name!r}")
