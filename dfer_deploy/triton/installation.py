"""What can be started as a server, and how: the options that every Triton gets, and a tritonserver on PATH."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfer_deploy.triton.ports import Endpoints

RESTRICTED = ("shared-memory", "model-repository", "trace", "logging")
"""Interfaces that change what a server does. A client that only asks for answers does not need them."""


class Installation(Protocol):
    """A Triton that ``TritonServer`` can start."""

    @property
    def description(self) -> str:
        """What it is, for people: a path, an image."""

    @property
    def python(self) -> Path:
        """The interpreter for the process that guards the server; needs the standard library only."""

    @property
    def has_gpu(self) -> bool:
        """Whether an error about CUDA in the server's log means something."""

    def server_command(self, repository: Path, endpoints: Endpoints, mark: str, exit_timeout_s: int) -> list[str]:
        """Return the command that serves in the foreground until SIGTERM.

        Args:
            repository: the absolute path of the model repository.
            endpoints: where it listens.
            mark: must occur in the command, so that the process can be found.
            exit_timeout_s: how long requests in flight may take at the end, in seconds.
        """

    def end_command(self, mark: str) -> list[str]:
        """Return the command that ends the server that carries ``mark``; empty where its process's end suffices."""

    def process_environment(self) -> dict[str, str]:
        """Return the environment variables of the command."""


@dataclass(frozen=True)
class TritonOnPath:
    """A tritonserver with its own backends, such as the one inside NVIDIA's container.

    Attributes:
        binary: the executable.
        has_gpu: whether CUDA has a device here.
        version_compatible: let its TensorRT backend execute the code in version-compatible engines.
    """

    binary: Path
    has_gpu: bool
    version_compatible: bool = False

    @property
    def description(self) -> str:
        return str(self.binary)

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def server_command(self, repository: Path, endpoints: Endpoints, mark: str, exit_timeout_s: int) -> list[str]:
        return [
            str(self.binary),
            f"--backend-config=python,shm-region-prefix-name={mark}",
            *engine_options(version_compatible=self.version_compatible),
            *server_options(repository, exit_timeout_s),
            *address_options(endpoints),
        ]

    def end_command(self, mark: str) -> list[str]:
        return []

    def process_environment(self) -> dict[str, str]:
        return dict(os.environ)


def server_options(repository: Path, exit_timeout_s: int, restricted: Sequence[str] = RESTRICTED) -> list[str]:
    """Return the options of every server: it loads the repository once, and refuses changes of models, traces and logs.

    Source: Triton's customization guide, "Secure Deployment Considerations" and "Limit Endpoint Access".
    """
    # Nobody knows the value, so nobody gets in.
    restriction = f"{','.join(restricted)}:dfer-deploy={secrets.token_hex(16)}"
    return [
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        f"--http-restricted-api={restriction}",
        f"--grpc-restricted-protocol={restriction}",
        f"--exit-timeout-secs={exit_timeout_s}",
    ]


def address_options(endpoints: Endpoints) -> list[str]:
    """Return where it listens; a port that another server has is an error, not shared with it."""
    return [
        f"--http-address={endpoints.host}",
        f"--http-port={endpoints.http_port}",
        "--reuse-http-port=false",
        f"--grpc-address={endpoints.host}",
        f"--grpc-port={endpoints.grpc_port}",
        "--reuse-grpc-port=false",
        f"--metrics-address={endpoints.host}",
        f"--metrics-port={endpoints.metrics_port}",
    ]


def engine_options(*, version_compatible: bool) -> list[str]:
    """Source: tensorrt_backend's README, "version-compatible"."""
    return ["--backend-config=tensorrt,version-compatible=true"] if version_compatible else []
