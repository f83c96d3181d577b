"""Train DFER-CLIP, and take a trained checkpoint to a verified Triton deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfer_deploy.errors import DferDeployError

if TYPE_CHECKING:
    from dfer_deploy.client import AsyncClient, CallError, Client, IncompatibleServerError

__all__ = ["AsyncClient", "CallError", "Client", "DferDeployError", "IncompatibleServerError", "__version__"]

__version__ = "0.2.0.dev0"


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """The clients, imported when they are asked for, so that the command line starts at once."""
    if name in ("AsyncClient", "CallError", "Client", "IncompatibleServerError"):
        from dfer_deploy import client

        return getattr(client, name)
    raise AttributeError(f"module 'dfer_deploy' has no attribute {name!r}")
