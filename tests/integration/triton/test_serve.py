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

from dfer_deploy.commands.serve import serve
from dfer_deploy.errors import DferDeployError
from dfer_deploy.triton.client import TritonPredictor

START = """
import sys
from dfer_deploy.commands.serve import serve
from dfer_deploy.errors import DferDeployError
try:
    serve.main(sys.argv[1:], standalone_mode=False)
except DferDeployError as error:
    sys.exit(str(error))
"""


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command, and its output up to the last line that it prints by itself."""
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command = [sys.executable, "-c", START, str(bundle), *ports]
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


def test_a_killed_server_ends_it_with_an_error(environment, bundle: Path) -> None:
    with serving(bundle) as (process, _):
        (tritonserver,) = [
            child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == "tritonserver"
        ]
        tritonserver.kill()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "tritonserver was killed by signal 9" in errors
        assert "Traceback" not in errors
        assert left_behind(process.pid) == []
        Path(errors.rpartition("its log is ")[2].strip()).unlink()


def test_other_machines_are_refused_without_insecure(bundle: Path) -> None:
    result = CliRunner().invoke(serve, [str(bundle), "--host", "192.0.2.1"])
    assert isinstance(result.exception, DferDeployError)
    assert "--insecure" in str(result.exception)
    assert "known critical vulnerabilities" in str(result.exception)


def test_the_onnxruntime_target_tells_the_container(onnxruntime_bundle: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(serve, [str(onnxruntime_bundle)])
    assert isinstance(result.exception, DferDeployError)
    assert "docker run" in str(result.exception)
    assert "nvcr.io/nvidia/tritonserver:26.07-py3" in str(result.exception)


def test_the_onnxruntime_target_runs_the_triton_on_path(onnxruntime_bundle: Path, tmp_path: Path) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    binary.chmod(0o755)
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    done = subprocess.run(
        [sys.executable, "-c", START, str(onnxruntime_bundle), *ports],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"--model-repository={onnxruntime_bundle.resolve() / 'model_repository'}" in done.stdout
    assert "--grpc-address=127.0.0.1" in done.stdout
    assert "dfer-deploy predict --url grpc://127.0.0.1:" in done.stdout
