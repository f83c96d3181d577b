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
    MixedAnswerError,
    MixedServersError,
    ModelNotFoundError,
    OutputError,
    QueueFullError,
    RequestRefusedError,
    ResultError,
    RuntimeUnavailableError,
    ServerDiedError,
    ServerError,
    ServerUnavailableError,
    SettingError,
    TrainingError,
    WriteError,
)

if TYPE_CHECKING:
    from dfer_deploy.api.bench_bundle import BenchOptions, bench_bundle
    from dfer_deploy.api.build_engines import BuildResult, build_engines
    from dfer_deploy.api.evaluate_checkpoint import EvaluationResult, evaluate_checkpoint
    from dfer_deploy.api.export_bundle import ExportResult, export_bundle
    from dfer_deploy.api.inspect_checkpoint import CheckpointSummary, inspect_checkpoint
    from dfer_deploy.api.load_bundle import LoadedBundle, load_bundle
    from dfer_deploy.api.migrate_bundle import MigrationResult, migrate_bundle
    from dfer_deploy.api.verify_bundle import verify_bundle
    from dfer_deploy.api.verify_options import VerifyOptions
    from dfer_deploy.bundles.bundle import ServingOptions
    from dfer_deploy.bundles.engine_records import BuildOptions
    from dfer_deploy.client import Answer, AsyncClient, Client, StreamAnswer, VideoWindows, Window
    from dfer_deploy.export.export_options import ExportOptions
    from dfer_deploy.measurement.bench_result import BenchResult
    from dfer_deploy.verification.verification_result import Comparison, ScoredAnswers, VerificationResult

_PLACES = {
    "Answer": "client",
    "AsyncClient": "client",
    "BenchOptions": "api.bench_bundle",
    "BenchResult": "measurement.bench_result",
    "BuildOptions": "bundles.engine_records",
    "BuildResult": "api.build_engines",
    "CheckpointSummary": "api.inspect_checkpoint",
    "Client": "client",
    "Comparison": "verification.verification_result",
    "EvaluationResult": "api.evaluate_checkpoint",
    "ExportOptions": "export.export_options",
    "ExportResult": "api.export_bundle",
    "LoadedBundle": "api.load_bundle",
    "MigrationResult": "api.migrate_bundle",
    "ScoredAnswers": "verification.verification_result",
    "ServingOptions": "bundles.bundle",
    "StreamAnswer": "client",
    "VerificationResult": "verification.verification_result",
    "VerifyOptions": "api.verify_options",
    "VideoWindows": "client",
    "Window": "client",
    "bench_bundle": "api.bench_bundle",
    "build_engines": "api.build_engines",
    "evaluate_checkpoint": "api.evaluate_checkpoint",
    "export_bundle": "api.export_bundle",
    "inspect_checkpoint": "api.inspect_checkpoint",
    "load_bundle": "api.load_bundle",
    "migrate_bundle": "api.migrate_bundle",
    "verify_bundle": "api.verify_bundle",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "BenchOptions",
    "BenchResult",
    "BuildOptions",
    "BuildResult",
    "BundleError",
    "CallError",
    "CheckpointError",
    "CheckpointSummary",
    "Client",
    "ClipError",
    "Comparison",
    "ConfigurationError",
    "DeadlineExceededError",
    "DferDeployError",
    "EngineError",
    "EvaluationResult",
    "ExportOptions",
    "ExportResult",
    "IncompatibleServerError",
    "LoadedBundle",
    "MigrationResult",
    "MissingExtraError",
    "MixedAnswerError",
    "MixedServersError",
    "ModelNotFoundError",
    "OutputError",
    "QueueFullError",
    "RequestRefusedError",
    "ResultError",
    "RuntimeUnavailableError",
    "ScoredAnswers",
    "ServerDiedError",
    "ServerError",
    "ServerUnavailableError",
    "ServingOptions",
    "SettingError",
    "StreamAnswer",
    "TrainingError",
    "VerificationResult",
    "VerifyOptions",
    "VideoWindows",
    "Window",
    "WriteError",
    "__version__",
    "bench_bundle",
    "build_engines",
    "evaluate_checkpoint",
    "export_bundle",
    "inspect_checkpoint",
    "load_bundle",
    "migrate_bundle",
    "verify_bundle",
]

__version__ = "0.2.0.dev0"


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import what is public when it is asked for, so that the command line starts at once.

    No public name needs an extra here. A function that needs one raises ``MissingExtraError`` when it is called.
    """
    if name in _PLACES:
        return getattr(importlib.import_module(f"dfer_deploy.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'dfer_deploy' has no attribute {name!r}")
