"""NVIDIA's Triton container, started with Docker: the choice of the image, and the container's privileges."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.bundles.compatibility import CONTAINERS, SECURITY_FLOOR, fitting_containers
from dfer_deploy.bundles.engine_records import EngineSet
from dfer_deploy.console import step
from dfer_deploy.errors import ServerError
from dfer_deploy.machine.children import child_environment
from dfer_deploy.triton.installation import engine_options, server_options
from dfer_deploy.triton.plain_paths import PlainLinks
from dfer_deploy.triton.ports import Endpoints

MODELS = Path("/models")
"""The path of the model repository inside the container, where it is read-only."""

UNPRIVILEGED = 1000
"""The id of the user and the group triton-server in NVIDIA's images (server/build.py)."""

_PORTS = (8000, 8001, 8002)
"""The ports for HTTP, gRPC and metrics inside the container."""


@dataclass(frozen=True)
class TritonContainer:
    """A Triton that ``docker run`` starts in the foreground (an ``Installation``).

    Of this machine's files, the container can read the model repository only. It can write to /tmp only, which is in
    memory. It runs as the calling user, who can read the repository. If the caller is root, it runs as the unprivileged
    user triton-server.

    Attributes:
        docker: path of Docker's client.
        image: name of the image with its tag or digest. The image must be on this machine (``ensure_image``).
        has_gpu: whether the container gets all GPUs.
        version_compatible: let the TensorRT backend execute the code in version-compatible engines.
    """

    docker: Path
    image: str
    has_gpu: bool
    version_compatible: bool = False

    @property
    def description(self) -> str:
        return self.image

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def server_command(self, repository: Path, endpoints: Endpoints, mark: str, exit_timeout_s: int) -> list[str]:
        user = [number or UNPRIVILEGED for number in (os.getuid(), os.getgid())]
        published = zip((endpoints.http_port, endpoints.grpc_port, endpoints.metrics_port), _PORTS, strict=True)
        return [
            str(self.docker),
            "run",
            "--rm",
            "--pull=never",
            f"--name={mark}",
            f"--user={user[0]}:{user[1]}",
            "--read-only",
            "--tmpfs=/tmp",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--shm-size=1g",
            f"--stop-timeout={exit_timeout_s + 10}",
            f"--mount={_mount(repository)}",
            *(f"--publish={endpoints.host}:{outside}:{inside}" for outside, inside in published),
            *(["--gpus=all"] if self.has_gpu else []),
            self.image,
            "tritonserver",
            *engine_options(version_compatible=self.version_compatible),
            *server_options(MODELS, exit_timeout_s),
        ]

    def end_command(self, mark: str) -> list[str]:
        """Build the command that ends the container, which keeps running when Docker's client is killed."""
        return [str(self.docker), "rm", "--force", mark]

    def process_environment(self) -> dict[str, str]:
        """Copy the environment variables that lead Docker's client to its daemon and its configuration."""
        return child_environment(proxies=True)

    def at_plain_paths(self, repository: Path, links: PlainLinks) -> tuple[TritonContainer, Path]:
        """Return both as they are, because the paths inside the container are plain."""
        return self, repository


def compose_command(bundle: Path, *arguments: str) -> str:
    """Build a command line for the compose.yaml in a bundle's folder, as the file's comments show it."""
    folder = shlex.quote(str(bundle))
    return f"env UID=$(id -u) GID=$(id -g) docker compose --project-directory {folder} {' '.join(arguments)}"


def image_for(built: EngineSet | None, bundle: Path) -> str:
    """Choose the oldest image without known critical vulnerabilities whose TensorRT runs the engines.

    Args:
        built: the record of the engines; None if none were built, so that every version of TensorRT fits.
        bundle: the bundle's folder, for the error's advice.

    Raises:
        DferDeployError: no such image is known.
    """
    if built is None:
        return next(container.image for container in CONTAINERS if container.tag == SECURITY_FLOOR)
    fitting = fitting_containers(built.builder)
    if not fitting:
        build = compose_command(bundle, "run", "--rm", "build")
        raise ServerError(
            f"no container since {SECURITY_FLOOR} is known to have TensorRT {built.builder.version}, with which the "
            "engines were built; build them inside the image that serves them "
            f"({build}), or name the image with: dfer-deploy serve {shlex.quote(str(bundle))} --image IMAGE"
        )
    return fitting[0].image


def is_outdated(image: str) -> bool:
    """Check whether an image's tag is a release with known critical vulnerabilities; False if the tag does not say."""
    release = re.search(r"(?:^|/)tritonserver:(\d\d\.\d\d)(?:-|$)", image)
    return release is not None and release.group(1) < SECURITY_FLOOR


def ensure_image(docker: Path, image: str) -> None:
    """Pull an image unless it is on this machine. Docker's own progress goes to standard error.

    Raises:
        DferDeployError: the image cannot be pulled.
    """
    known = subprocess.run(
        [str(docker), "image", "inspect", image], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if known.returncode == 0:
        return
    with step(f"pull {image} (once, several GB)"):
        # Standard error's file descriptor, so that Docker detects the terminal.
        pulled = subprocess.run([str(docker), "pull", image], stdin=subprocess.DEVNULL, stdout=2, check=False)
        if pulled.returncode != 0:
            raise ServerError(
                f"docker could not pull {image} (exit code {pulled.returncode}, its message is above); "
                "check the name and the network"
            )


def _mount(repository: Path) -> str:
    """The option's value as one line of CSV, as Docker reads it, so that a path may contain commas and quotes."""
    line = io.StringIO()
    fields = ("type=bind", f"source={repository}", f"target={MODELS}", "readonly")
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
