"""A tritonserver process that serves a model repository: the embedded one, one on PATH, or a container's."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput, model_config_pb2
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from dfer_deploy.console import warn
from dfer_deploy.errors import ServerDiedError, ServerError
from dfer_deploy.machine.children import WORKING_DIRECTORY
from dfer_deploy.triton import guard
from dfer_deploy.triton.address import channel_options
from dfer_deploy.triton.installation import Installation
from dfer_deploy.triton.plain_paths import PlainLinks
from dfer_deploy.triton.ports import Endpoints, reserve_ports
from dfer_deploy.triton.server_log import meaning_of_log, opened_log, reason_in_words

PROBE_TIMEOUT_S = 10.0
"""Limits one inference of the readiness check, in seconds. One frame through ViT-B/32 takes 0.1 s on two cores."""

_DATATYPES = {
    model_config_pb2.TYPE_UINT8: "UINT8",
    model_config_pb2.TYPE_INT32: "INT32",
    model_config_pb2.TYPE_FP32: "FP32",
    model_config_pb2.TYPE_STRING: "BYTES",
}
"""The datatypes of the ensembles' inputs: Triton's names in requests by those in configurations."""


class TritonServer:
    """A context manager that serves a model repository. At its end, no process, port, shared memory or file is left.

    This also holds if tritonserver or this process is killed, because a guard process runs between them
    (``guard.py``). The repository is loaded once, and the interfaces that change models, traces or logs are closed.

    Example:
        >>> with TritonServer(triton_environment(), bundle.model_repository) as server:
        ...     TritonPredictor(server.endpoints.grpc_url)
    """

    def __init__(
        self,
        installation: Installation,
        model_repository: Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
        start_timeout_s: float = 180.0,
        exit_timeout_s: float = 10.0,
        log_file: Path | None = None,
    ) -> None:
        """Describe the server; ``start`` or entering the context starts it.

        Args:
            installation: the private environment, a tritonserver on PATH or a container.
            model_repository: the folder to serve.
            http_port: port of the HTTP service; 0 chooses a free one.
            grpc_port: port of the gRPC service; 0 chooses a free one.
            metrics_port: port of the Prometheus metrics; 0 chooses a free one.
            host: IPv4 address to listen on. The embedded server is an old release, so only the loopback is safe for it.
            start_timeout_s: seconds that loading and the first answers may take.
            exit_timeout_s: seconds that requests in flight may take at the end; 0 kills the server at once.
            log_file: file for the server's output. By default, a file in the cache folder, which a clean stop removes.
        """
        self._installation = installation
        self._repository = model_repository.absolute()
        self._ports = {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port}
        # Triton's HTTP service needs a numeric address.
        self._host = "127.0.0.1" if host == "localhost" else host
        self._start_timeout_s = start_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._given_log = log_file
        self._guard: subprocess.Popen[str] | None = None
        self._mark = ""
        self._failed = False
        self._endpoints: Endpoints | None = None
        self.log_file: Path | None = log_file

    @property
    def endpoints(self) -> Endpoints:
        """The host and the ports that the started server listens on."""
        if self._endpoints is None:
            raise RuntimeError("the server has not been started")
        return self._endpoints

    def start(self) -> None:
        """Start the server, and wait until every ensemble of the repository has answered an inference.

        Raises:
            DferDeployError: a port is taken (the error names the process), the repository cannot be served (the error
                includes the relevant part of the log), or the server did not answer in time.
        """
        probes = _probes(self._repository)
        ports = reserve_ports(self._host, self._ports)
        # A restart keeps the ports, because clients know them.
        self._ports, self._failed = ports, False
        self._endpoints = Endpoints(self._host, ports["HTTP"], ports["gRPC"], ports["metrics"])
        # The names of the backend's shared memory begin with the mark too.
        self._mark = f"dfer_deploy_{os.getpid()}_{secrets.token_hex(6)}_"
        self.log_file = opened_log(self._given_log)
        installation, repository = self._installation.at_plain_paths(self._repository, PlainLinks(self._mark))
        script = [str(installation.python), "-I", str(Path(guard.__file__).absolute())]
        keep = "keep" if self._given_log else "drop"
        end = installation.end_command(self._mark)
        settings = [self._mark, str(self._exit_timeout_s), str(self.log_file), keep, json.dumps(end)]
        command = installation.server_command(
            repository, self._endpoints, self._mark, max(1, round(self._exit_timeout_s))
        )
        self._guard = subprocess.Popen(
            [*script, *settings, *command],
            env=installation.process_environment(),
            cwd=WORKING_DIRECTORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._wait_until_ready(probes)
            self._tell("watch")
            if any(guard.SHARED_MEMORY.glob(f"{self._mark}*")):
                warn("other users of this machine can read the server's shared memory, because this user may not mount")
        except BaseException:
            self.stop()
            raise

    def wait(self) -> ServerDiedError:
        """Wait until the server, or the process of one of its models, ends by itself.

        Returns:
            An error that states which process ended, and why.
        """
        if self._guard is None:
            raise RuntimeError("the server has not been started")
        self._guard.wait()
        return self._death()

    def stop(self) -> None:
        """Stop the server. After ``exit_timeout_s``, all its processes are killed. May be called more than once.

        The log is kept if the server had ended by itself.
        """
        if self._guard is None:
            return
        process, self._guard = self._guard, None
        self._failed = self._failed or process.poll() is not None
        with process:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write("stop\n")
                    process.stdin.close()
            try:
                process.wait(self._exit_timeout_s + 10)
            except subprocess.TimeoutExpired:
                process.kill()
            finally:
                # The guard has done this, unless it was killed.
                guard.end_processes(self._mark)
                guard.run_end_command(self._installation.end_command(self._mark))
                guard.remove_leftovers(self._mark, set())
        if self._given_log is None and self.log_file is not None and not self._failed:
            self.log_file.unlink(missing_ok=True)

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, probes: dict[str, list[InferInput]]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        waiting = dict(probes)
        last = "it does not listen yet"
        netloc = self.endpoints.grpc_url.removeprefix("grpc://")
        # By default gRPC's reconnection backoff grows, but this server is ready after a second or two.
        backoff = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]
        options = [*channel_options(netloc), *backoff]
        with contextlib.closing(InferenceServerClient(netloc, channel_args=options)) as client:
            while True:
                self._check_alive()
                try:
                    # Only an answer proves that a model runs: the server reports one whose process has died as ready.
                    if waiting:
                        name = next(iter(waiting))
                        client.infer(name, waiting[name], client_timeout=PROBE_TIMEOUT_S)
                        del waiting[name]
                    else:
                        # The gRPC service listens first, so the others are checked too.
                        for port in (self.endpoints.http_port, self.endpoints.metrics_port):
                            socket.create_connection((self.endpoints.reachable_host, port), PROBE_TIMEOUT_S).close()
                        return
                except InferenceServerException as error:
                    last = str(error).splitlines()[0]
                    if error.status() == "StatusCode.INVALID_ARGUMENT":
                        self._failed = True
                        raise ServerError(
                            f"the model {name!r} refuses a request of zeros ({error.message()}), so its graphs are not "
                            f"those that were exported; export the bundle again; the server's log is {self.log_file}"
                        ) from error
                    if error.status() == "StatusCode.UNIMPLEMENTED":
                        # The server's Python lacks Pillow, so trying again would not help.
                        warn(f"the model {name!r} is not served: {error.message()}")
                        del waiting[name]
                        continue
                except OSError as error:
                    last = f"its port {port} does not listen: {error.strerror or error}"
                if time.monotonic() > deadline:
                    self._failed = True
                    raise ServerError(
                        f"the server did not answer within {self._start_timeout_s:g} s ({last}); "
                        f"its log is {self.log_file}"
                    )
                time.sleep(0.05)

    def _check_alive(self) -> None:
        if self._guard is not None and self._guard.poll() is not None:
            raise self._death()

    def _death(self) -> ServerDiedError:
        self._failed = True
        output = self._guard.stdout.read() if self._guard is not None and self._guard.stdout is not None else ""
        reason = (output.strip().splitlines() or ["guard"])[-1]
        meaning = meaning_of_log(self.log_file, has_gpu=self._installation.has_gpu)
        because = f": {meaning}" if meaning else ""
        return ServerDiedError(f"{reason_in_words(reason)}{because}; its log is {self.log_file}")

    def _tell(self, word: str) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(f"{word}\n")
                self._guard.stdin.flush()


def _probes(repository: Path) -> dict[str, list[InferInput]]:
    """A request for every ensemble of the repository: zeros or tiny images, with every dynamic dimension 1."""
    probes: dict[str, list[InferInput]] = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ServerError(f"{path} is no model configuration ({error}); export the bundle again") from error
        if config.platform != "ensemble":
            continue
        inputs = []
        for entry in config.input:
            shape = [1, *(max(1, size) for size in entry.dims)]
            datatype = _DATATYPES[entry.data_type]
            tensor = InferInput(entry.name, shape, datatype)
            fill = _tiny_image() if datatype == "BYTES" else 0
            tensor.set_data_from_numpy(np.full(shape, fill, triton_to_np_dtype(datatype)))
            inputs.append(tensor)
        probes[config.name] = inputs
    if not probes:
        raise ServerError(f"{repository} holds no ensemble to serve; export the bundle again")
    return probes


def _tiny_image() -> bytes:
    """One pixel, as a PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()
