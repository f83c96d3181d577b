"""A server of its own for commands that need one while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dfer_deploy.bundle import Bundle
from dfer_deploy.console import step
from dfer_deploy.errors import DferDeployError
from dfer_deploy.export.repository import check_model_repository
from dfer_deploy.triton.environment import triton_environment
from dfer_deploy.triton.server import Endpoints, TritonServer


@contextlib.contextmanager
def served_bundle(bundle: Bundle) -> Iterator[Endpoints]:
    """Serves a bundle on free ports of the loopback until the context ends.

    Raises:
        DferDeployError: the bundle is for another server, or the server cannot start.
    """
    if bundle.manifest.target != "embedded":
        raise DferDeployError(
            f"{bundle.path} is for the target {bundle.manifest.target!r}, which this command cannot start; "
            "start its server and give --url"
        )
    check_model_repository(bundle)
    environment = triton_environment()
    server = TritonServer(environment, bundle.model_repository)
    with step("start Triton"):
        server.start()
    try:
        yield server.endpoints
    finally:
        server.stop()
