"""Choose the server for a bundle on this machine, and start one for commands that need it while they run."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.engine_records import EngineSet
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.console import step, warn
from dfer_deploy.doctor.servers import probe_docker
from dfer_deploy.errors import ServerError, spelled
from dfer_deploy.export.repository import check_model_repository
from dfer_deploy.hardware import ask_cuda_driver
from dfer_deploy.triton.container import TritonContainer, compose_command, ensure_image, image_for
from dfer_deploy.triton.environment import triton_environment
from dfer_deploy.triton.installation import Installation, TritonOnPath
from dfer_deploy.triton.ports import Endpoints
from dfer_deploy.triton.server import TritonServer

START_TIMEOUT_S = {"embedded": 180.0, "onnxruntime": 900.0, "tensorrt": 900.0}
"""Longest wait for a server, by target. On a GPU, onnxruntime may build engines while it loads, and the first start
of a container reads many GB."""


@contextlib.contextmanager
def served_bundle(
    bundle: Bundle,
    installation: Installation | None = None,
    *,
    host_code_allowed: bool = False,
    quiet: bool = False,
) -> Iterator[Endpoints]:
    """Serve a bundle on free loopback ports until the context ends. The server leaves nothing behind.

    Args:
        bundle: an opened bundle.
        installation: the server to start; None for the result of ``installation_for``.
        host_code_allowed: passed to ``installation_for``.
        quiet: show no progress.

    Raises:
        DferDeployError: this machine has no server for the bundle, or the server cannot start.
    """
    installation = installation or installation_for(bundle, host_code_allowed=host_code_allowed)
    server = TritonServer(
        installation, bundle.model_repository, start_timeout_s=START_TIMEOUT_S[bundle.manifest.target]
    )
    with contextlib.nullcontext() if quiet else step(f"start Triton ({installation.description})"):
        server.start()
    try:
        yield server.endpoints
    finally:
        server.stop()


def check_served(client: TritonPredictor, bundle: Bundle) -> None:
    """Refuse a server that reports another model than the bundle's.

    Raises:
        DferDeployError: the server's class names, or the SHA-256 of its graphs, differ from the bundle's.
    """
    labels, class_names = client.labels(), bundle.spec.prompts.class_names
    if labels != class_names:
        raise ServerError(
            f"the server names the classes {', '.join(labels)}, the bundle {', '.join(class_names)}; "
            "it serves another model"
        )
    told, expected = client.graphs_sha256, bundle.graphs_sha256
    if told is None:
        warn("the server does not tell which graphs it serves; its answers alone show whether they are this bundle's")
    elif told != expected:
        of_server, of_bundle = (" and ".join(f"{digest[:12]}…" for digest in both) for both in (told, expected))
        raise ServerError(
            f"the server says that its graphs have the SHA-256 {of_server}, those of {bundle.path} have {of_bundle}; "
            "serve this bundle, or verify the one that is served"
        )


def installation_for(bundle: Bundle, *, image: str | None = None, host_code_allowed: bool = False) -> Installation:
    """Return the Triton that serves a bundle here, after checking that the bundle can be served.

    The target ``embedded`` uses the private environment. The other targets use a tritonserver on PATH, else Docker.

    Args:
        bundle: an opened bundle.
        image: use Docker with this image; None for the image that fits the engines.
        host_code_allowed: let the server execute the code that version-compatible engines carry.

    Raises:
        DferDeployError: engines, a server, or the permission to execute the engines' code are missing.
    """
    check_model_repository(bundle)
    if bundle.manifest.target == "embedded":
        return triton_environment()
    built = _engines_to_serve(bundle, host_code_allowed=host_code_allowed)
    on_path = shutil.which("tritonserver")
    if on_path is not None and image is None:
        return TritonOnPath(Path(on_path).absolute(), bool(ask_cuda_driver().gpus), host_code_allowed)
    docker = probe_docker()
    if docker.client is None or docker.problem:
        reason = f"Docker {docker.problem}" if docker.client else "Docker is not on PATH either"
        raise ServerError(
            f"the target {bundle.manifest.target!r} needs Triton with its own backends, and no tritonserver is on PATH "
            f"({reason}); where Docker runs, type: {compose_command(bundle.path, 'up', 'server')}"
        )
    has_gpu = bundle.manifest.target == "tensorrt" or bool(ask_cuda_driver().gpus)
    image = image or image_for(built, bundle.path)
    container = TritonContainer(Path(docker.client).absolute(), image, has_gpu, host_code_allowed)
    ensure_image(container.docker, container.image)
    return container


def _engines_to_serve(bundle: Bundle, *, host_code_allowed: bool) -> EngineSet | None:
    """Return the engines of the target ``tensorrt``, or None for the target ``onnxruntime``."""
    if bundle.manifest.target != "tensorrt":
        return None
    built = bundle.engines
    if built is None:
        folder, inside = shlex.quote(str(bundle.path)), compose_command(bundle.path, "run", "--rm", "build")
        raise ServerError(
            f"the engines of {bundle.path} are not built; build them with TensorRT on this machine: dfer-deploy build "
            f"{folder}, or inside the image that serves them: {inside}"
        )
    if built.builder.version_compatible and not host_code_allowed:
        raise ServerError(
            f"the engines of {bundle.path} are version-compatible: they carry code that the server would execute; "
            f"allow it with {spelled('allow_host_code', True)} if you built them"
        )
    return built
