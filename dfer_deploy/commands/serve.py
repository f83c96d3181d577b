"""``dfer-deploy serve BUNDLE``: a Triton server for a bundle, until Ctrl-C."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from dfer_deploy.bundle import Bundle, open_bundle
from dfer_deploy.console import stdout, step
from dfer_deploy.errors import DferDeployError
from dfer_deploy.export.repository import check_model_repository
from dfer_deploy.triton.environment import triton_environment
from dfer_deploy.triton.ports import reserve_ports
from dfer_deploy.triton.server import Endpoints, TritonServer

CONTAINER = "nvcr.io/nvidia/tritonserver:26.07-py3"
"""The first release with the fixes of two critical vulnerabilities."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--http-port", default=8000, show_default=True, help="Port of the HTTP service; 0 chooses a free one.")
@click.option("--grpc-port", default=8001, show_default=True, help="Port of the gRPC service; 0 chooses a free one.")
@click.option("--metrics-port", default=8002, show_default=True, help="Port of the metrics; 0 chooses a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="IPv4 address to listen on.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine, though the embedded server is an old one.")
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), help="Where the server's log goes and stays."
)  # fmt: skip
def serve(
    bundle: Path, http_port: int, grpc_port: int, metrics_port: int, host: str, insecure: bool, log: Path | None
) -> None:
    """Serve BUNDLE with Triton on this machine.

    The server of the target embedded is installed on first use (about 480 MB). Ends with Ctrl-C or SIGTERM.
    """
    opened = open_bundle(bundle)
    if opened.manifest.target != "embedded":
        _serve_with_own_triton(opened, http_port, grpc_port, metrics_port, host)
    check_host(host, insecure)
    check_model_repository(opened)
    with _stop_signals(), contextlib.suppress(_StopSignal):
        server = TritonServer(
            triton_environment(),
            opened.model_repository,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            host=host,
            log_file=log,
        )
        try:
            with step(f"Triton loads {bundle}"):
                server.start()
            _print_endpoints(server.endpoints, opened.manifest.name)
            server.wait()
        except _StopSignal:
            with step("stopping the server"):
                server.stop()
        finally:
            server.stop()


def check_host(host: str, insecure: bool) -> None:
    """Refuses addresses that others can reach, unless that is asked for.

    Raises:
        DferDeployError: the host is no IPv4 address, or not of the loopback without ``insecure``.
    """
    try:
        address = ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise DferDeployError(f"the host {host!r} is no IPv4 address; expected for example 127.0.0.1") from error
    if not address.is_loopback and not insecure:
        raise DferDeployError(
            f"the host {host} can be reached from other machines, and the embedded server is Triton 2.51, which has "
            "known critical vulnerabilities; keep 127.0.0.1, serve the target onnxruntime in a current container, "
            "or add --insecure in a network that you trust"
        )


def _serve_with_own_triton(bundle: Bundle, http_port: int, grpc_port: int, metrics_port: int, host: str) -> None:
    """Becomes the tritonserver on PATH; returns never.

    Raises:
        DferDeployError: there is none; the message has the command that runs one in a container.
    """
    binary = shutil.which("tritonserver")
    if binary is None:
        folder = shlex.quote(f"{bundle.model_repository.resolve()}:/models:ro")
        published = ((http_port, 8000), (grpc_port, 8001), (metrics_port, 8002))
        ports = " ".join(f"-p {host}:{outside or inside}:{inside}" for outside, inside in published)
        raise DferDeployError(
            f"the target {bundle.manifest.target!r} needs Triton with its own backends, and none is on "
            f"PATH; run: docker run --rm {ports} -v {folder} {CONTAINER} tritonserver --model-repository=/models "
            f"--model-control-mode=none --disable-auto-complete-config (that image or a newer one; "
            f"with a GPU add --gpus=all)"
        )
    ports_of = reserve_ports(host, {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port})
    endpoints = Endpoints(host, ports_of["HTTP"], ports_of["gRPC"], ports_of["metrics"])
    _print_endpoints(endpoints, bundle.manifest.name)
    os.execv(  # noqa: S606
        binary,
        [
            binary,
            f"--model-repository={bundle.model_repository.resolve()}",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            *(f"--{service}-address={host}" for service in ("http", "grpc", "metrics")),
            f"--http-port={endpoints.http_port}",
            f"--grpc-port={endpoints.grpc_port}",
            f"--metrics-port={endpoints.metrics_port}",
        ],
    )


def _print_endpoints(endpoints: Endpoints, name: str) -> None:
    for what, url in (("gRPC", endpoints.grpc_url), ("HTTP", endpoints.http_url), ("metrics", endpoints.metrics_url)):
        stdout.print(f"{what:8} {url}", markup=False)
    stdout.print(f"Model {name}. Ask it from another terminal:\n", markup=False)
    other = "" if name == "dfer" else f" --model {name}"
    stdout.print(f"  dfer-deploy predict --url {endpoints.grpc_url}{other} VIDEO\n", markup=False)
    stdout.print("Ctrl-C stops the server.")


class _StopSignal(BaseException):
    """SIGINT, SIGTERM or SIGHUP: the wanted end of this command."""


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Raises ``_StopSignal`` at the first signal and ignores the others, so that nothing interrupts the clean-up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise _StopSignal

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
