"""How a real Triton starts and ends: nothing may be left of it, whatever dies first."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper
from tiny import clips_of

from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.errors import ServerDiedError, ServerError, ServerUnavailableError
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer
from dfer_deploy.triton_models.container import healthcheck


def traces(pid: int) -> list[str]:
    """What a server started by process ``pid`` has left: processes and shared memory."""
    mark = f"dfer_deploy_{pid}_"
    regions = [str(region) for region in Path("/dev/shm").glob(f"{mark}*")]
    processes = [
        f"{process.pid} {process.info['cmdline'][:3]}"
        for process in psutil.process_iter(["cmdline", "status"])
        if mark in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    return regions + processes


def backend_folders() -> set[Path]:
    """The backend's folders, except those made in the minute after a Triton of another process of tests started."""
    own = f"dfer_deploy_{os.getpid()}_"
    servers = [
        p.info for p in psutil.process_iter(["name", "cmdline", "create_time"]) if p.info["name"] == "tritonserver"
    ]
    starts = [server["create_time"] for server in servers if own not in " ".join(server["cmdline"] or [])]
    found = set()
    for folder in Path("/tmp").glob("python_env_*"):
        with contextlib.suppress(FileNotFoundError):
            made = folder.stat().st_mtime
            if not any(-1 < made - start < 60 for start in starts):
                found.add(folder)
    return found


def wait_until_no_traces(pid: int, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while (left := traces(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def wait_until_no_new_folders(before: set[Path], limit_s: float = 60.0) -> None:
    """A Triton of another process of tests leaves its folder, when it ends, until its guard has removed it."""
    deadline = time.monotonic() + limit_s
    while (new := backend_folders() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert new == set()


def wait_for_its_end(server: TritonServer, limit_s: float = 10.0) -> None:
    """Raises what ``server.wait()`` returns; it fails instead of waiting for ever."""
    assert server._guard is not None
    server._guard.wait(limit_s)
    raise server.wait()


def children(server: TritonServer) -> tuple[psutil.Process, list[psutil.Process]]:
    """tritonserver and its stubs."""
    assert server._guard is not None
    (tritonserver,) = psutil.Process(server._guard.pid).children()
    return tritonserver, tritonserver.children()


@pytest.fixture
def own_process() -> Iterator[subprocess.Popen[str]]:
    """Nothing of this test's servers may remain, whatever ended them (the module's server has its own mark)."""
    before, folders_before = set(traces(os.getpid())), backend_folders()
    yield
    deadline = time.monotonic() + 10
    while set(traces(os.getpid())) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(traces(os.getpid())) == before
    wait_until_no_new_folders(folders_before)


@pytest.mark.usefixtures("own_process")
def test_a_clean_stop_leaves_nothing(environment: TritonEnvironment, bundle: Path) -> None:
    with TritonServer(environment, bundle / "model_repository") as server:
        assert server.log_file is not None
        assert server.log_file.exists()
        assert len(children(server)[1]) == 4  # encoder, head, preprocessing, stream head
    assert not server.log_file.exists()
    server.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_killed_server_is_an_error_and_leaves_nothing(environment: TritonEnvironment, bundle: Path) -> None:
    with (
        pytest.raises(ServerDiedError, match="tritonserver was killed by signal 9; its log is "),
        TritonServer(environment, bundle / "model_repository") as server,
        TritonPredictor(server.endpoints.grpc_url) as predictor,
        TritonPredictor(server.endpoints.http_url) as other,
    ):
        children(server)[0].kill()
        for client in (predictor, other):
            with pytest.raises(ServerUnavailableError):
                client.predict(clips_of(1, frames=16))
        wait_for_its_end(server)
    assert server.log_file is not None
    assert server.log_file.exists()
    server.log_file.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_killed_stub_ends_the_server_with_an_error(environment: TritonEnvironment, bundle: Path) -> None:
    with (
        pytest.raises(ServerDiedError, match="the process of the model dfer_temporal_head died"),
        TritonServer(environment, bundle / "model_repository") as server,
    ):
        (stub,) = [stub for stub in children(server)[1] if "temporal_head" in " ".join(stub.cmdline())]
        stub.kill()
        wait_for_its_end(server)
    assert server.log_file is not None
    server.log_file.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_a_stub_that_stands_still_ends_the_server_at_once(environment: TritonEnvironment, bundle: Path) -> None:
    """Before Triton gives the stub up, after a second, and mixes up answers."""
    with (
        pytest.raises(ServerDiedError, match="the model dfer_window stood still"),
        TritonServer(environment, bundle / "model_repository") as server,
    ):
        time.sleep(1.0)  # so that the guard knows the stub's pulse
        (stub,) = [stub for stub in children(server)[1] if "dfer_window" in " ".join(stub.cmdline())]
        stub.suspend()
        wait_for_its_end(server)
    assert server.log_file is not None
    server.log_file.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_health_is_an_answer(
    environment: TritonEnvironment, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triton itself calls a server ready whose model hangs. In a container no guard ends it."""
    monkeypatch.setattr(healthcheck, "DEADLINE_S", 0.4)
    with TritonServer(environment, bundle / "model_repository") as server:
        url = server.endpoints.http_url
        assert healthcheck.main(url) == 0
        guard = psutil.Process(server._guard.pid if server._guard else 0)
        (stub,) = [stub for stub in children(server)[1] if "temporal_head" in " ".join(stub.cmdline())]
        guard.suspend()
        stub.suspend()
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready") as answer:  # noqa: S310
                assert answer.status == 200
            assert healthcheck.main(url) == 1
            assert "does not answer" in capsys.readouterr().err
        finally:
            stub.resume()
            guard.resume()
    assert healthcheck.main(url) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_killed_guard_is_an_error_and_leaves_no_process(environment: TritonEnvironment, bundle: Path) -> None:
    before, traces_before = set(Path("/tmp").glob("python_env_*")), traces(os.getpid())
    with (
        pytest.raises(ServerDiedError, match="the process that guards tritonserver was killed"),
        TritonServer(environment, bundle / "model_repository") as server,
    ):
        assert server._guard is not None
        server._guard.kill()
        wait_for_its_end(server)
    # At once, not when the stubs have noticed.
    assert traces(os.getpid()) == traces_before
    assert server.log_file is not None
    server.log_file.unlink()
    # Nobody who knows the folder is left; it is empty. Those of other servers may go too, as a guard lets them.
    for folder in set(Path("/tmp").glob("python_env_*")) - before:
        with contextlib.suppress(OSError):
            folder.rmdir()


@pytest.mark.slow
def test_our_own_death_leaves_nothing(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    before = backend_folders()
    script = f"""
        from pathlib import Path
        from dfer_deploy.triton.environment import triton_environment
        from dfer_deploy.triton.server import TritonServer
        server = TritonServer(triton_environment(), Path({str(bundle / "model_repository")!r}))
        server.start()
        print(server.log_file, flush=True)
        server.wait()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        log = Path(owner.stdout.readline().strip())
        assert log.exists()
        assert len(traces(owner.pid)) >= 6  # the guard, the server, two stubs and their shared memory
        owner.kill()
    wait_until_no_traces(owner.pid)
    assert not log.exists()
    wait_until_no_new_folders(before)


@pytest.mark.usefixtures("own_process")
def test_taken_port_names_its_holder(environment: TritonEnvironment, bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ServerError):
            TritonServer(environment, bundle / "model_repository", grpc_port=port).start()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_a_model_that_refuses_zeros_ends_the_wait_at_once(
    environment: TritonEnvironment, bundle: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(bundle / "model_repository", repository)
    path = repository / "dfer_image_encoder" / "1" / "model.onnx"
    model = onnx.load(path)
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.nan * numpy_helper.to_array(weights), "weights"))
    path.unlink()
    onnx.save(model, path)
    log = tmp_path / "triton.log"
    server = TritonServer(environment, repository, start_timeout_s=10_000, exit_timeout_s=0, log_file=log)
    with pytest.raises(ServerError, match=r"refuses a request of zeros \(in ensemble"):
        server.start()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_a_start_that_takes_too_long(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    server = TritonServer(
        environment, bundle / "model_repository", start_timeout_s=0.1, exit_timeout_s=0, log_file=log
    )  # fmt: skip
    with pytest.raises(ServerError, match=r"did not answer within 0\.1 s \(.+\); its log is .*triton\.log"):
        server.start()


@pytest.mark.usefixtures("own_process")
def test_a_folder_that_is_no_repository(environment: TritonEnvironment, tmp_path: Path) -> None:
    with pytest.raises(ServerError):
        TritonServer(environment, tmp_path).start()
    (tmp_path / "dfer").mkdir()
    (tmp_path / "dfer" / "config.pbtxt").write_text("name: 7")
    with pytest.raises(ServerError):
        TritonServer(environment, tmp_path).start()


def test_unwritable_log(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError):
        TritonServer(environment, bundle / "model_repository", log_file=tmp_path).start()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_damaged_model_is_told_from_the_log(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(bundle / "model_repository", repository)
    (repository / "dfer_temporal_head" / "1" / "model.onnx").write_bytes(b"no graph")
    log = tmp_path / "triton.log"
    with pytest.raises(ServerDiedError) as failed:
        TritonServer(environment, repository, log_file=log).start()
    assert "failed to load 'dfer_temporal_head' version 1" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert str(log) in str(failed.value)
    assert log.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_copied_repository_of_two_versions_serves_the_newer(
    environment: TritonEnvironment, bundle: Path, tiny_model, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", bundle / "model_repository")
    repository = tmp_path / "repository"
    shutil.unpack_archive(archive, repository)
    for model in ("dfer", "dfer_image_encoder", "dfer_temporal_head"):
        shutil.copytree(repository / model / "1", repository / model / "2")
    with (
        TritonServer(environment, repository, exit_timeout_s=0) as server,
        TritonPredictor(server.endpoints.grpc_url) as predictor,
    ):
        frames = clips_of(1, frames=16)
        assert np.abs(predictor.predict(frames).logits - tiny_model.predict(frames).logits).max() < 1e-4


@pytest.mark.slow
def test_repository_for_the_onnxruntime_backend_is_understood(
    environment: TritonEnvironment, onnxruntime_bundle: Path
) -> None:
    """This Triton has no onnxruntime backend; everything before that must have passed."""
    with pytest.raises(ServerDiedError) as failed:
        TritonServer(environment, onnxruntime_bundle / "model_repository").start()
    message = str(failed.value)
    assert "onnxruntime" in message
    assert "backend" in message
    Path(message.rpartition("its log is ")[2]).unlink()


@pytest.mark.slow
def test_signals_reach_a_server_whose_guard_ignores_them(environment: TritonEnvironment, bundle: Path) -> None:
    with TritonServer(environment, bundle / "model_repository", exit_timeout_s=5) as server:
        assert server._guard is not None
        os.kill(server._guard.pid, signal.SIGTERM)
        tritonserver, _ = children(server)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 8
        assert not tritonserver.is_running()
