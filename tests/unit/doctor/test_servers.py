"""A tritonserver, Docker and the embedded server: absent, broken, forbidden. The programs are fakes that fail."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dfer_deploy.doctor.finding import Finding
from dfer_deploy.doctor.servers import (
    Docker,
    EmbeddedServer,
    LocalTriton,
    docker_findings,
    probe_docker,
    probe_embedded,
    probe_triton,
    server_findings,
)
from dfer_deploy.triton.cache import CACHE_VARIABLE

DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
    'Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.50/version": dial unix /var/run/docker.sock: connect: permission denied'
)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder on PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("TRITON_SERVER_VERSION", raising=False)
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def docker(folder: Path, info: dict[str, object], compose: str = "echo 2.39.1") -> None:
    """A daemon that answers."""
    script = f"""case "$*" in
    version*) echo 29.1.0;;
    info*) echo '{json.dumps(info)}';;
    compose*) {compose};;
    esac"""
    program(folder, "docker", script)


def lines(*, gpu: bool = False, **found: object) -> dict[str, Finding]:
    defaults = {"embedded": EmbeddedServer(), "triton": LocalTriton(), "docker": Docker()} | found
    return {line.what: line for line in server_findings(**defaults, gpu=gpu)}  # type: ignore[arg-type]


def test_nothing_on_path(programs: Path, tmp_path: Path) -> None:
    assert probe_triton(tmp_path / "backends") == LocalTriton()
    assert probe_docker() == Docker()
    assert lines()["Docker"].state == "missing"
    assert lines(triton=LocalTriton("/opt/tritonserver/bin/tritonserver"))["Docker"].state == "not needed"


@pytest.mark.parametrize(
    ("script", "said", "command"),
    [
        (f"echo '{DENIED}' >&2; exit 1", "permission denied", 'sudo usermod -aG docker "$USER"'),
        (
            "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?' >&2; exit 1",
            "Cannot connect",
            "sudo systemctl restart docker",
        ),
        ("kill -SEGV $$", "crashed with SIGSEGV", "sudo systemctl restart docker"),
        ("echo 'no json'", "'no json' instead of JSON", "sudo systemctl restart docker"),
    ],
)
def test_a_docker_that_does_not_answer(programs: Path, script: str, said: str, command: str) -> None:
    program(programs, "docker", script)
    found = probe_docker()
    assert found.server is None
    line = docker_findings(found, LocalTriton(), gpu=False)[0]
    assert (line.state, line.command) == ("problem", command)
    assert said in line.found


@pytest.mark.parametrize(
    ("info", "gpu", "state"),
    [
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, True, "ok"),
        ({"Runtimes": None, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, True, "ok"),
        ({"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"ID": "intel.com/gpu=0"}]}, True, "missing"),
        ({"Runtimes": ["odd"], "DiscoveredDevices": 3}, True, "missing"),
        ({}, False, "not needed"),
    ],
)
def test_gpus_in_docker(programs: Path, info: dict[str, object], gpu: bool, state: str) -> None:
    docker(programs, info)
    found = lines(docker=probe_docker(), gpu=gpu)
    assert found["Docker"].state == "ok"
    assert found["GPUs in Docker"].state == state
    assert found["Docker Compose"].found == "2.39.1"


def test_docker_without_compose(programs: Path) -> None:
    docker(programs, {}, compose="echo unknown flag: --short >&2; exit 125")
    assert lines(docker=probe_docker())["Docker Compose"].state == "missing"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'error while loading shared libraries: libdcgm.so.3' >&2; exit 127", "libdcgm.so.3"),
        ("exit 1", "does not start: exit code 1"),
        ("kill -ILL $$", "does not start: exit code -4"),
    ],
)
def test_a_tritonserver_that_does_not_start(programs: Path, tmp_path: Path, script: str, said: str) -> None:
    program(programs, "tritonserver", script)
    line = lines(triton=probe_triton(tmp_path))["tritonserver"]
    assert line.state == "problem"
    assert said in line.found


def test_a_tritonserver_and_the_tensorrt_that_its_backend_loads(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library is compiled here: it only says its version, in the functions that NvInferRuntime.h declares."""
    compiler = shutil.which("cc", path="/usr/bin:/usr/local/bin")
    if compiler is None:
        pytest.skip("no C compiler to make a libnvinfer.so.11 with")
    source = tmp_path / "nvinfer.c"
    source.write_text(
        "".join(
            f"int getInferLib{part}Version(void) {{ return {number}; }}\n"
            for part, number in (("Major", 11), ("Minor", 1), ("Patch", 0), ("Build", 42))
        )
    )
    command = [compiler, "-shared", "-fPIC", "-o", tmp_path / "libnvinfer.so.11", source]
    subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.71.0")
    backends = tmp_path / "backends"
    for name in ("tensorrt", "onnxruntime"):
        (backends / name).mkdir(parents=True)
    (backends / "tensorrt" / "libtriton_tensorrt.so").write_bytes(b"\x7fELF\0libcudart.so.13\0libnvinfer.so.11\0")
    program(programs, "tritonserver", "echo 'Usage: tritonserver [options]'")
    found = probe_triton(backends)
    assert found.tensorrt == "11.1.0.42"
    assert found.backends == ("onnxruntime", "tensorrt")
    assert (
        "version 2.71.0; backends onnxruntime, tensorrt; TensorRT 11.1.0.42"
        in lines(triton=found)["tritonserver"].found
    )
    (tmp_path / "libnvinfer.so.11").write_text("damaged")
    assert probe_triton(backends).tensorrt is None


def test_the_embedded_server_is_looked_for_and_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    found = probe_embedded()
    assert found.perf_analyzer is None
    assert not (tmp_path / "cache").exists()
    # Where this machine cannot run it, that is said instead.
    assert lines(embedded=found)["embedded server"].state == ("problem" if found.problem else "missing")
    refused = lines(embedded=EmbeddedServer(problem="needs glibc 2.35"))
    assert (refused["embedded server"].state, refused["perf_analyzer"].state) == ("problem", "problem")


def test_doctor_knows_a_cache_that_the_server_cannot_run_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "sp ace"))
    monkeypatch.setattr("dfer_deploy.doctor.servers.installed_triton_environment", lambda: None)
    assert probe_embedded().problem == ""  # through a link
    monkeypatch.setattr("dfer_deploy.triton.plain_paths.link_places", list)
    assert "sp ace" in probe_embedded().problem
