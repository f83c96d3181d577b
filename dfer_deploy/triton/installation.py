"""Installations of Triton that can be started: their protocol, the server's options, and a tritonserver on PATH."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfer_deploy.machine.children import child_environment
from dfer_deploy.triton.plain_paths import PlainLinks, check_places
from dfer_deploy.triton.ports import Endpoints

RESTRICTED = ("shared-memory", "trace", "logging")
"""Interfaces that change a server's behaviour, by Triton's names. Clients do not need them for inferences. The model
repository's is open, because tools list the models with it, and nothing is loaded in the control mode ``none``."""

_NOBODYS_KEY = "Dfer-Deploy=sent by\nnobody"
"""A header that no request can have. Every local user can read a server's command line, so it must not hold a secret.
Triton compares gRPC's names of headers, which are in lower case, with this one. HTTP's values have no line breaks."""


class Installation(Protocol):
    """A Triton that ``TritonServer`` can start."""

    @property
    def description(self) -> str:
        """The installation for display: a path or the name of an image."""

    @property
    def python(self) -> Path:
        """The Python interpreter for the guard process, which needs the standard library only."""

    @property
    def has_gpu(self) -> bool:
        """Whether the server has a GPU, so that errors about CUDA in its log are relevant."""

    def server_command(self, repository: Path, endpoints: Endpoints, mark: str, exit_timeout_s: int) -> list[str]:
        """Build the command that serves in the foreground until SIGTERM.

        Args:
            repository: the absolute path of the model repository.
            endpoints: the addresses to listen on.
            mark: a string that must occur in the command, so that the process can be found.
            exit_timeout_s: seconds that requests in flight may take when the server stops.
        """

    def end_command(self, mark: str) -> list[str]:
        """Build the command that ends the server with this ``mark``; empty if ending its process is enough."""

    def process_environment(self) -> dict[str, str]:
        """Build the environment variables of the command."""

    def at_plain_paths(self, repository: Path, links: PlainLinks) -> tuple[Installation, Path]:
        """Return this installation and the model repository, at paths that Triton's Python backend can use."""


@dataclass(frozen=True)
class TritonOnPath:
    """A tritonserver with its own backends, such as the one inside NVIDIA's container.

    Attributes:
        binary: path of the executable.
        has_gpu: whether CUDA has a device on this machine.
        version_compatible: let the TensorRT backend execute the code in version-compatible engines.
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
        return child_environment()

    def at_plain_paths(self, repository: Path, links: PlainLinks) -> tuple[TritonOnPath, Path]:
        check_places(repository)
        return self, links.to(repository, "model_repository")


def server_options(repository: Path, exit_timeout_s: int, restricted: Sequence[str] = RESTRICTED) -> list[str]:
    """Build the options that every server gets.

    The server loads the repository once, when it starts, and takes the configurations as they are. It refuses requests
    to the restricted interfaces, by default shared memory, traces and logs.

    Source: Triton's customization guide, "Secure Deployment Considerations" and "Limit Endpoint Access".

    Args:
        repository: the model repository, as the server sees it.
        exit_timeout_s: seconds that requests in flight may take when the server stops.
        restricted: interfaces to close, by Triton's names.
    """
    restriction = f"{','.join(restricted)}:{_NOBODYS_KEY}"
    return [
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        f"--http-restricted-api={restriction}",
        f"--grpc-restricted-protocol={restriction}",
        f"--exit-timeout-secs={exit_timeout_s}",
    ]


def address_options(endpoints: Endpoints) -> list[str]:
    """Build the options for the addresses to listen on. A port that is in use is an error and is not shared."""
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
    """Build the options of the TensorRT backend. Source: tensorrt_backend's README, "version-compatible"."""
    return ["--backend-config=tensorrt,version-compatible=true"] if version_compatible else []
