"""The command ``serve`` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from dfer_deploy.api.serving import installation_for, served_bundle
from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.bundles.engine_records import Builder, EngineSet
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client import Client
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.commands.serve import serve
from dfer_deploy.errors import DferDeployError, ExitCode, ServerError
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.triton.container import compose_command
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.installation import TritonOnPath

START = """
import sys
from dfer_deploy.commands.serve import serve
from dfer_deploy.errors import DferDeployError, ServerError
try:
    serve.main(sys.argv[1:], standalone_mode=False)
except DferDeployError as error:
    sys.exit(str(error))
"""


@contextlib.contextmanager
def serving(bundle: Path, *start: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command, and its output up to the last line that it prints by itself."""
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command = [sys.executable, *(start or ("-c", START)), str(bundle), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            yield process, "".join(lines)
        finally:
            if process.poll() is None:
                process.kill()


def left_behind(pid: int) -> list[str]:
    mark = f"dfer_deploy_{pid}_"
    regions = [region.name for region in Path("/dev/shm").glob(f"{mark}*")]
    return regions + [str(p.pid) for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_cleanly(environment, bundle: Path, number: signal.Signals) -> None:
    with serving(bundle) as (process, output):
        url = re.search(r"dfer-deploy predict --url (grpc://\S+) VIDEO", output)
        assert url is not None, output
        with TritonPredictor(url[1]) as predictor:
            assert predictor.predict(np.zeros((1, 16, 32, 32, 3), np.uint8)).logits.shape == (1, 7)
        for scheme in ("grpc", "http"):
            assert f"{scheme}://127.0.0.1:" in output
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert left_behind(process.pid) == []


@pytest.mark.slow
def test_a_killed_server_is_started_again_until_that_is_given_up(environment, bundle: Path) -> None:
    with serving(bundle, "-m", "dfer_deploy", "serve") as (process, output):
        url = re.search(r"dfer-deploy predict --url (grpc://\S+) VIDEO", output)
        assert url is not None, output
        assert process.stderr is not None
        said: list[str] = []
        with Client(url[1], retries=60) as client:
            for restarts in range(6):
                # The first ensemble answers a client before all of them have answered ``serve``.
                while sum("the server answers again" in line for line in said) < restarts:
                    said.append(process.stderr.readline())
                    assert said[-1], said
                client.predict(np.zeros((16, 32, 32, 3), np.uint8))
                (tritonserver,) = [
                    child
                    for child in psutil.Process(process.pid).children(recursive=True)
                    if child.name() == "tritonserver"
                ]
                tritonserver.kill()
        errors = "".join(said) + process.stderr.read()
        assert process.wait(60) == ExitCode.SERVER_DIED
        assert errors.count("the server answers again") == 5
        assert "Traceback" not in errors
        assert left_behind(process.pid) == []
        for log in set(re.findall(r"its log is (\S+\.log)", errors)):
            Path(log).unlink()


def test_other_machines_are_refused_without_insecure(bundle: Path) -> None:
    result = CliRunner().invoke(serve, [str(bundle), "--host", "192.0.2.1"])
    assert isinstance(result.exception, DferDeployError)
    assert "--insecure" in str(result.exception)
    assert "known critical vulnerabilities" in str(result.exception)


def test_an_old_image_is_refused_for_other_machines_too(onnxruntime_bundle: Path) -> None:
    image = "nvcr.io/nvidia/tritonserver:26.05-py3"
    result = CliRunner().invoke(serve, [str(onnxruntime_bundle), "--host", "192.0.2.1", "--image", image])
    assert isinstance(result.exception, DferDeployError)
    assert image in str(result.exception)


@pytest.mark.parametrize(("release", "refused"), [("24.01", True), ("26.07", False), (None, False)])
def test_an_old_tritonserver_on_path_is_refused_for_other_machines_too(
    onnxruntime_bundle: Path, release: str | None, refused: bool, monkeypatch, tmp_path: Path
) -> None:
    (tmp_path / "tritonserver").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "tritonserver").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)
    if release:
        monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", release)
    result = CliRunner().invoke(serve, [str(onnxruntime_bundle), "--host", "192.0.2.1"])
    assert isinstance(result.exception, DferDeployError)
    assert ("tritonserver:24.01" in str(result.exception)) is refused


def test_without_any_server_it_tells_what_to_type(onnxruntime_bundle: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(serve, [str(onnxruntime_bundle), "--http-port=0", "--grpc-port=0", "--metrics-port=0"])
    assert isinstance(result.exception, DferDeployError)
    assert "no tritonserver is on PATH (Docker is not on PATH either)" in str(result.exception)
    assert str(result.exception).endswith(compose_command(onnxruntime_bundle, "up", "server"))


def test_a_docker_without_daemon_is_told(onnxruntime_bundle: Path, monkeypatch, tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho Cannot connect to the Docker daemon >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError):
        installation_for(open_bundle(onnxruntime_bundle))


def test_the_triton_on_path_comes_first(onnxruntime_bundle: Path, monkeypatch, tmp_path: Path) -> None:
    for name in ("tritonserver", "docker"):
        (tmp_path / name).write_text("#!/bin/sh\necho '{}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    opened = open_bundle(onnxruntime_bundle)
    assert installation_for(opened).description == str(tmp_path / "tritonserver")
    assert installation_for(opened, image="own:1").description == "own:1"
    (tmp_path / "tritonserver").unlink()
    assert installation_for(opened).description == "nvcr.io/nvidia/tritonserver:26.07-py3"


def test_a_triton_on_path_without_the_backend_says_so(
    environment: TritonEnvironment, onnxruntime_bundle: Path, monkeypatch, tmp_path: Path
) -> None:
    """The embedded server's binary without its folder of backends; everything before that works."""
    (tmp_path / "tritonserver").symlink_to(environment.tritonserver)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", environment.process_environment()["LD_LIBRARY_PATH"])
    with pytest.raises(ServerError) as failed, served_bundle(open_bundle(onnxruntime_bundle)):
        pass
    message, _, log = str(failed.value).rpartition("; its log is ")
    assert message.startswith("tritonserver ended with exit code 1: failed to load 'dfer_")
    # Triton loads the models at the same time: whichever fails first is named.
    assert re.search("unable to find backend library for backend '(onnxruntime|python)'", message)
    Path(log).unlink()


def test_engines_have_to_be_built(tensorrt_bundle: Path) -> None:
    opened = open_bundle(tensorrt_bundle)
    with pytest.raises(ServerError) as refused:
        installation_for(opened)
    assert f"dfer-deploy build '{opened.path}'" in str(refused.value)
    assert compose_command(opened.path, "run", "--rm", "build") in str(refused.value)


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "BUNDLE", "--http-port=0", "--grpc-port=0", "--metrics-port=0"),
        ("bench", "BUNDLE", "--propose"),
        ("bench", "BUNDLE", "--runtime=onnxruntime-cpu", "--runtime=triton"),
        ("verify", "BUNDLE", "--checkpoint=CHECKPOINT", "--data=LIST", "--runtime=triton"),
    ],
    ids=["serve", "bench --propose", "bench", "verify"],
)
def test_one_permission_lets_engines_carry_code(
    cli,
    bundle_for_tensorrt: Path,
    own_checkpoint: Path,
    clip_list: Path,
    command: tuple[str, ...],
    monkeypatch,
    tmp_path,
) -> None:
    built = EngineSet(Builder(module="tensorrt", version="11.1.0.106", version_compatible=True), None, {})
    monkeypatch.setattr(Bundle, "engines", property(lambda bundle: built))
    monkeypatch.setenv("PATH", str(tmp_path))
    names = {"BUNDLE": bundle_for_tensorrt, "CHECKPOINT": own_checkpoint, "LIST": clip_list}
    words = [re.sub("[A-Z]+$", lambda name: str(names[name[0]]), word) for word in command]
    refused = cli(*words)
    assert refused.exit_code == 2, refused.output
    assert "allow it with --allow-host-code if you built them" in refused.output
    allowed = cli(*words, "--allow-host-code")
    assert "PATH" in allowed.output


def test_the_permission_reaches_the_server(bundle_for_tensorrt: Path, monkeypatch, tmp_path: Path) -> None:
    built = EngineSet(Builder(module="tensorrt", version="11.1.0.106", version_compatible=True), None, {})
    monkeypatch.setattr(Bundle, "engines", property(lambda bundle: built))
    (tmp_path / "tritonserver").write_text("#!/bin/sh\n")
    (tmp_path / "tritonserver").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    installation = installation_for(open_bundle(bundle_for_tensorrt), host_code_allowed=True)
    assert isinstance(installation, TritonOnPath)
    assert installation.version_compatible


@pytest.fixture(scope="module")
def bundle_for_tensorrt(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the graphs of the tiny checkpoint; its engines are not built."""
    options = ExportOptions("tensorrt", ServingOptions(max_batch_size=8))
    return export_to_folder(own_checkpoint, tmp_path_factory.mktemp("tensorrt") / "tiny", options)[0].path
