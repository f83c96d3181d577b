"""The container's life, with a real Triton in the place of what Docker would start.

There is no Docker in these tests: a small program takes the same command line, and runs the embedded server's binary
with the ports and the folder that the options name. What Docker itself makes of the options is not tried.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.errors import ServerError
from dfer_deploy.triton.container import TritonContainer
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer
from dfer_deploy.triton_models import container_files

DOCKER = """#!{python}
import os, subprocess, sys
def options(name):
    return [word.partition("=")[2] for word in sys.argv if word.startswith(f"--{{name}}=")]
with open({calls!r}, "a") as file:
    print(*sys.argv[1:3], *options("name"), file=file)
if sys.argv[1] != "run":
    sys.exit()
if {refusal!r}:
    sys.exit({refusal!r})
(mount,) = options("mount")
repository = dict(field.partition("=")[::2] for field in mount.split(","))["source"]
inside = {{"8000": "http", "8001": "grpc", "8002": "metrics"}}
command = sys.argv[sys.argv.index("image:1") + 2:]
command = [word.replace("=/models", "=" + repository) for word in command]
for host, outside, port in (published.split(":") for published in options("publish")):
    command += [f"--{{inside[port]}}-address={{host}}", f"--{{inside[port]}}-port={{outside}}"]
os.environ.update({variables!r})
os.execv({tritonserver!r}, ["tritonserver", "--backend-directory={backends}", *command])
"""


def fake_docker(folder: Path, environment: TritonEnvironment, refusal: str = "") -> Path:
    docker = folder / "docker"
    variables = {name: environment.process_environment()[name] for name in ("PATH", "LD_LIBRARY_PATH")}
    docker.write_text(
        DOCKER.format(
            python=sys.executable,
            calls=str(folder / "calls"),
            refusal=refusal,
            variables=variables,
            tritonserver=str(environment.tritonserver),
            backends=environment.backend_directory,
        )
    )
    docker.chmod(0o755)
    return docker


def test_it_serves_and_ends(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    container = TritonContainer(fake_docker(tmp_path, environment), "image:1", has_gpu=False)
    with (
        TritonServer(container, bundle / "model_repository") as server,
        TritonPredictor(server.endpoints.grpc_url) as predictor,
    ):
        assert predictor.predict(np.zeros((1, 16, 32, 32, 3), np.uint8)).logits.shape == (1, 7)
    run, *removed = (tmp_path / "calls").read_text().splitlines()
    mark = run.split()[-1]
    # By the guard, and once more in case that it was killed.
    assert removed == ["rm --force"] * 2
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.endpoints.grpc_port), 1)
    assert re.fullmatch(rf"dfer_deploy_{os.getpid()}_[0-9a-f]{{12}}_", mark)


def test_what_docker_says_is_told(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    said = 'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]]'
    container = TritonContainer(fake_docker(tmp_path, environment, said), "image:1", has_gpu=True)
    with pytest.raises(ServerError) as failed:
        TritonServer(container, bundle / "model_repository").start()
    message, _, log = str(failed.value).rpartition("; its log is ")
    assert message == f"tritonserver ended with exit code 1: {said.rstrip('.')}"
    Path(log).unlink()


@contextlib.contextmanager
def started_as_in_the_image(environment: TritonEnvironment, repository: Path, folder: Path) -> Iterator[list[int]]:
    """Runs the CMD of the Dockerfile; gives the HTTP, gRPC and metrics ports, which the image leaves to Docker."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [listener.getsockname()[1] for listener in opened]
    own = [
        f"--{name}-{what}"
        for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)
        for what in (f"port={port}", "address=127.0.0.1")
    ]
    binary = folder / "tritonserver"
    binary.write_text(
        "#!/bin/sh\nfor word; do shift\n"
        f'case "$word" in --model-repository=/models) word=--model-repository={repository};; esac\n'
        'set -- "$@" "$word"; done\n'
        f'exec {environment.tritonserver} --backend-directory={environment.backend_directory} "$@" {" ".join(own)}\n'
    )
    binary.chmod(0o755)
    text = re.sub(r"\\\n\s*", "", container_files("onnxruntime")["Dockerfile"])
    line = re.search(r"^CMD (.*)$", text, re.MULTILINE)
    assert line is not None
    variables = environment.process_environment()
    variables["PATH"] = f"{folder}:{variables['PATH']}"
    command = ["/bin/sh", "-c", line[1]]
    with subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield ports
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def answer(url: str, data: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(url, data, timeout=5) as response:  # noqa: S310 - http://127.0.0.1
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_images_command_starts_a_closed_server(
    environment: TritonEnvironment, bundle: Path, tmp_path: Path
) -> None:
    with started_as_in_the_image(environment, bundle / "model_repository", tmp_path) as (http, grpc, _):
        script = tmp_path / "healthcheck.py"
        script.write_text(container_files("onnxruntime")["healthcheck.py"], encoding="utf-8")
        deadline = time.monotonic() + 60
        check = [sys.executable, "-I", script, f"http://127.0.0.1:{http}"]
        while (healthy := subprocess.run(check, check=False).returncode) != 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert healthy == 0
        with TritonPredictor(f"grpc://127.0.0.1:{grpc}") as predictor:
            assert predictor.predict(np.zeros((1, 16, 32, 32, 3), np.uint8)).logits.shape == (1, 7)
        for path in ("trace/setting", "logging"):
            assert answer(f"http://127.0.0.1:{http}/v2/{path}", b"{}") == 403, path
        assert answer(f"http://127.0.0.1:{http}/v2/repository/index", b"{}") == 200
        assert answer(f"http://127.0.0.1:{http}/v2/repository/models/dfer/unload", b"{}") not in (0, 200)
        assert answer(f"http://127.0.0.1:{http}/v2/systemsharedmemory/status") == 403
        assert answer(f"http://127.0.0.1:{http}/v2/models/dfer/stats") == 200
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(http) in " ".join(p.info["cmdline"] or [])]
