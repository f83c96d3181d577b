"""Check the ways to serve from this machine (embedded server, tritonserver on PATH, Docker) and perf_analyzer."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.doctor.child import ProbeError, answer_of_python, json_object, output_of, run_program, shortened
from dfer_deploy.doctor.finding import Finding
from dfer_deploy.errors import DferDeployError
from dfer_deploy.triton.cache import cache_folder
from dfer_deploy.triton.environment import installed_triton_environment
from dfer_deploy.triton.plain_paths import check_places

_LIBNVINFER = """
import ctypes, json
nvinfer = ctypes.CDLL(sys.argv[1])
parts = ("Major", "Minor", "Patch", "Build")
print(json.dumps({"version": ".".join(str(getattr(nvinfer, f"getInferLib{part}Version")()) for part in parts)}))
"""
"""TensorRT C++ API, NvInferRuntime.h: getInferLibMajorVersion and its siblings take no arguments and return an int."""

BACKENDS = Path("/opt/tritonserver/backends")
"""Where a tritonserver looks by default, wherever it is installed (server/src/command_line_parser.h)."""

_MAX_BACKEND_BYTES = 64 << 20
"""Largest part of a backend library that is searched, because it is read into memory."""


@dataclass(frozen=True)
class EmbeddedServer:
    """The private environment of the embedded server.

    Attributes:
        perf_analyzer: path of its load generator; None if the environment does not exist yet.
        problem: why this machine cannot run it; empty if it can.
    """

    perf_analyzer: Path | None = None
    problem: str = ""


@dataclass(frozen=True)
class LocalTriton:
    """The tritonserver on PATH.

    Attributes:
        path: path of the program; None if there is none.
        version: version of Triton; None if unknown.
        backends: names of its backends.
        tensorrt: version of the TensorRT that its backend loads; None if it has none or the version is unknown.
        problem: why it does not start; empty if it does.
    """

    path: str | None = None
    version: str | None = None
    backends: tuple[str, ...] = ()
    tensorrt: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class Docker:
    """The state of Docker.

    Attributes:
        client: path of the client; None if there is none.
        server: version of the daemon; None if it cannot be reached.
        nvidia: how containers get GPUs; empty if they cannot.
        compose: version of Compose; None if there is none.
        problem: why the daemon cannot be reached; empty if it can.
    """

    client: str | None = None
    server: str | None = None
    nvidia: str = ""
    compose: str | None = None
    problem: str = ""


def probe_embedded() -> EmbeddedServer:
    """Look for the private environment without creating it."""
    try:
        environment = installed_triton_environment()
        check_places(cache_folder())
    except DferDeployError as error:
        return EmbeddedServer(problem=str(error))
    return EmbeddedServer(environment.perf_analyzer if environment else None)


def probe_triton(backends_folder: Path = BACKENDS) -> LocalTriton:
    """Look for a tritonserver on PATH, its backends, and the TensorRT that they load."""
    path = shutil.which("tritonserver")
    if path is None:
        return LocalTriton()
    # NVIDIA's images state the server's version in these variables (server/build.py). No option prints it.
    version = os.environ.get("TRITON_SERVER_VERSION")
    backends: tuple[str, ...] = ()
    with contextlib.suppress(OSError):
        backends = tuple(sorted(entry.name for entry in backends_folder.iterdir() if entry.is_dir()))
    try:
        outcome = run_program([path, "--help"])
    except ProbeError as error:
        return LocalTriton(path, version, backends, problem=str(error))
    if "usage" not in (outcome.output + outcome.errors).lower():
        said = shortened(outcome.errors or outcome.output) or f"exit code {outcome.returncode}"
        return LocalTriton(path, version, backends, problem=f"does not start: {said}")
    return LocalTriton(
        path, version, backends, _backend_tensorrt(backends_folder / "tensorrt" / "libtriton_tensorrt.so")
    )


def probe_docker() -> Docker:
    """Look for a Docker client, ask the daemon for its version and abilities, and look for Compose."""
    client = shutil.which("docker")
    if client is None:
        return Docker()
    compose = None
    for command in ([client, "compose", "version", "--short"], ["docker-compose", "version", "--short"]):
        with contextlib.suppress(ProbeError):
            compose = shortened(output_of(command), 40) or compose
            break
    try:
        server = shortened(output_of([client, "version", "--format", "{{.Server.Version}}"]), 40)
        info = json_object(output_of([client, "info", "--format", "{{json .}}"]))
    except ProbeError as error:
        return Docker(client, compose=compose, problem=shortened(str(error), 300))
    return Docker(client, server, _nvidia_in_docker(info), compose)


def server_findings(embedded: EmbeddedServer, triton: LocalTriton, docker: Docker, *, gpu: bool) -> list[Finding]:
    """Return one finding for each way to serve, and one for perf_analyzer."""
    return [
        _embedded(embedded),
        _triton(triton),
        *docker_findings(docker, triton, gpu=gpu),
        *_compose(docker),
        _perf_analyzer(embedded),
    ]


def docker_findings(docker: Docker, triton: LocalTriton, *, gpu: bool) -> list[Finding]:
    """Return whether containers can be run, and with GPUs."""
    if docker.client is None and not docker.problem:
        if triton.path is not None:
            return [Finding("Docker", "not needed", "not on PATH, but tritonserver is")]
        advice = "for serving with NVIDIA's containers, see https://docs.docker.com/engine/install/"
        return [Finding("Docker", "missing", "not on PATH", advice)]
    lines = []
    if docker.problem:
        # The message is the client's own (docker/cli, client/errors.go).
        if "permission denied" in docker.problem.lower():
            advice, command = "join the group docker and log in again", 'sudo usermod -aG docker "$USER"'
        else:
            advice, command = "start the daemon, or start it again", "sudo systemctl restart docker"
        lines.append(Finding("Docker", "problem", docker.problem, advice, command))
    else:
        lines.append(Finding("Docker", "ok", f"{docker.client}, daemon {docker.server}"))
        if docker.nvidia:
            lines.append(Finding("GPUs in Docker", "ok", docker.nvidia))
        elif not gpu:
            lines.append(Finding("GPUs in Docker", "not needed", "no GPU"))
        else:
            advice = "install the NVIDIA Container Toolkit, then tell Docker of it"
            command = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
            lines.append(Finding("GPUs in Docker", "missing", "no NVIDIA runtime and no CDI device", advice, command))
    return lines


def _embedded(embedded: EmbeddedServer) -> Finding:
    what = "embedded server"
    if embedded.problem:
        return Finding(what, "problem", embedded.problem)
    if embedded.perf_analyzer is None:
        return Finding(what, "missing", "can run here", f"made on first use, about 390 MB in {cache_folder()}")
    return Finding(what, "ok", f"installed in {cache_folder()}")


def _triton(triton: LocalTriton) -> Finding:
    if triton.problem:
        advice = "start it in the container that it belongs to"
        return Finding("tritonserver", "problem", f"{triton.path or 'tritonserver'} {triton.problem}", advice)
    if triton.path is None:
        return Finding("tritonserver", "not needed", "not on PATH; it lives in NVIDIA's containers")
    parts = [triton.path, *([f"version {triton.version}"] if triton.version else [])]
    parts.append(f"backends {', '.join(triton.backends) or 'none'}")
    if triton.tensorrt:
        parts.append(f"TensorRT {triton.tensorrt}")
    return Finding("tritonserver", "ok", "; ".join(parts))


def _compose(docker: Docker) -> list[Finding]:
    what = "Docker Compose"
    if docker.compose:
        return [Finding(what, "ok", docker.compose)]
    if docker.client is None:
        return []
    advice = "for the compose.yaml of a bundle"
    return [Finding(what, "missing", "docker knows no compose", advice, "sudo apt install docker-compose-plugin")]


def _perf_analyzer(embedded: EmbeddedServer) -> Finding:
    if embedded.perf_analyzer is not None:
        return Finding("perf_analyzer", "ok", "in the embedded server's environment")
    on_path = shutil.which("perf_analyzer")
    if not embedded.problem:
        found = f"{on_path}, which bench does not use" if on_path else "not installed yet"
        return Finding("perf_analyzer", "missing", found, "comes with the embedded server's environment on first use")
    if on_path:
        return Finding("perf_analyzer", "ok", f"{on_path}; bench itself cannot run here, call it yourself")
    advice = "run bench on a machine with Linux x86-64 and glibc 2.35, with --url of this one's server"
    return Finding("perf_analyzer", "problem", "its environment cannot run here, and PATH has none", advice)


def _nvidia_in_docker(info: dict[str, object]) -> str:
    """Return how containers get GPUs, from ``Runtimes`` and CDI's ``DiscoveredDevices`` (Docker Engine API 1.50)."""
    runtimes, devices = info.get("Runtimes"), info.get("DiscoveredDevices")
    if isinstance(runtimes, dict) and "nvidia" in runtimes:
        return "NVIDIA runtime"
    if isinstance(devices, list) and any("nvidia.com/gpu" in str(device) for device in devices):
        return "CDI devices nvidia.com/gpu"
    # docker run --gpus does not need a configured runtime, only the toolkit's hook on the daemon's machine.
    if shutil.which("nvidia-container-runtime-hook"):
        return "NVIDIA Container Toolkit"
    return ""


def _backend_tensorrt(backend: Path) -> str | None:
    """Return the version of the libnvinfer that the loader gives to Triton's TensorRT backend."""
    try:
        with backend.open("rb") as file:
            wanted = re.search(rb"libnvinfer\.so\.\d+", file.read(_MAX_BACKEND_BYTES))
        return str(answer_of_python(_LIBNVINFER, wanted.group().decode())["version"]) if wanted else None
    except (OSError, ProbeError, KeyError):
        return None
