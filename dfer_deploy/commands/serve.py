"""``dfer-deploy serve BUNDLE``: a Triton server for a bundle, until Ctrl-C."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from dfer_deploy.api.serving import START_TIMEOUT_S, installation_for
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.commands.options import host_code_option
from dfer_deploy.commands.signals import handled
from dfer_deploy.console import stdout, step, warn
from dfer_deploy.errors import SettingError
from dfer_deploy.triton.container import is_outdated
from dfer_deploy.triton.ports import Endpoints, reserve_ports
from dfer_deploy.triton.restarts import RestartPolicy, keep_serving
from dfer_deploy.triton.server import TritonServer


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--http-port", default=8000, show_default=True, help="Port of the HTTP service; 0 chooses a free one.")
@click.option("--grpc-port", default=8001, show_default=True, help="Port of the gRPC service; 0 chooses a free one.")
@click.option("--metrics-port", default=8002, show_default=True, help="Port of the metrics; 0 chooses a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="IPv4 address to listen on.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine with a server that is known to be unsafe.")
@click.option(
    "--image",
    help="Serve with Docker and this image.  [default: tritonserver on PATH, else the image that fits the engines]",
)
@host_code_option
@click.option(
    "--log", type=click.Path(path_type=Path, dir_okay=False), help="Where the server's log goes and stays."
)  # fmt: skip
def serve(
    bundle: Path,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    host: str,
    insecure: bool,
    image: str | None,
    allow_host_code: bool,
    log: Path | None,
) -> None:
    """Serve BUNDLE with Triton on this machine.

    The server of the target embedded is installed on first use (about 390 MB). The targets tensorrt and onnxruntime are
    served by the tritonserver on PATH, else by NVIDIA's container with Docker. Ctrl-C or SIGTERM ends the server. One
    that ends by itself is started again, up to five times in two minutes.
    """
    opened = open_bundle(bundle)
    target = opened.manifest.target
    if image and target == "embedded":
        raise click.UsageError("--image is for the targets tensorrt and onnxruntime; embedded runs without Docker")
    server_name = image or ""
    if target == "embedded":
        server_name = "the embedded server"
    elif image is None and shutil.which("tritonserver"):
        # In NVIDIA's images (server/build.py). Elsewhere the release is unknown.
        server_name = f"tritonserver:{os.environ.get('NVIDIA_TRITON_SERVER_VERSION', '')}"
    check_host(host, insecure, server=server_name)
    with _stop_signals(), contextlib.suppress(_StopSignal):
        # Checked before looking for a server, which may download many GB.
        reserve_ports(host, {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port})
        installation = installation_for(opened, image=image, host_code_allowed=allow_host_code)
        server = TritonServer(
            installation,
            opened.model_repository,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            host=host,
            start_timeout_s=START_TIMEOUT_S[target],
            log_file=log,
        )
        try:
            with step(f"Triton ({installation.description}) loads {bundle}"):
                server.start()
            _print_endpoints(server.endpoints, opened.manifest.name)
            keep_serving(server, RestartPolicy())
        except _StopSignal:
            with step("stopping the server"):
                server.stop()
        finally:
            server.stop()


def check_host(host: str, insecure: bool, *, server: str) -> None:
    """Refuse an address that others can reach if the server is unsafe, unless the user insists.

    Args:
        host: IPv4 address to listen on.
        insecure: listen there nevertheless.
        server: ``the embedded server``, an image, ``tritonserver:`` and its release, or empty for a current Triton.

    Raises:
        DferDeployError: the host is not an IPv4 address, or it is not a loopback address, the server is old and
            ``insecure`` is not set.
    """
    try:
        address = ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise SettingError(f"the host {host!r} is not an IPv4 address; expected for example 127.0.0.1") from error
    if address.is_loopback:
        return
    if not insecure and (server == "the embedded server" or is_outdated(server)):
        raise SettingError(
            f"the host {host} can be reached from other machines, and {server} is a Triton with known critical "
            "vulnerabilities; keep 127.0.0.1, serve with a current container (target tensorrt or onnxruntime), or add "
            "--insecure in a network that you trust"
        )
    warn(f"{host} can be reached from other machines, and Triton lets everybody ask; put a gateway in front of it")


def _print_endpoints(endpoints: Endpoints, name: str) -> None:
    for what, url in (("gRPC", endpoints.grpc_url), ("HTTP", endpoints.http_url), ("metrics", endpoints.metrics_url)):
        stdout.print(f"{what:8} {url}", markup=False)
    stdout.print(f"Model {name}. Ask it from another terminal:\n", markup=False)
    other = "" if name == "dfer" else f" --model {name}"
    stdout.print(f"  dfer-deploy predict --url {endpoints.grpc_url}{other} VIDEO\n", markup=False)
    stdout.print("Ctrl-C stops the server.")


class _StopSignal(BaseException):
    """SIGINT, SIGTERM or SIGHUP: the normal end of this command."""


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Raise ``_StopSignal`` at the first signal and ignore further ones, so that nothing interrupts the clean-up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise _StopSignal

    with handled(numbers, stop):
        yield
