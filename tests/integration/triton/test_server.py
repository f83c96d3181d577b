"""A real Triton, started the way ``serve`` starts it, asked over gRPC and HTTP."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tritonclient import grpc as grpc_client
from tritonclient import http as http_client
from tritonclient.utils import InferenceServerException

from dfer_deploy.bundle import open_bundle
from dfer_deploy.errors import DferDeployError
from dfer_deploy.runtimes.predictor import Predictor
from dfer_deploy.triton.client import TritonPredictor
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.perf_analyzer import measure_load
from dfer_deploy.triton.server import TritonServer

SIZE, MAX_BATCH = 32, 4


@pytest.fixture(scope="module")
def server(environment: TritonEnvironment, bundle: Path) -> Iterator[TritonServer]:
    with TritonServer(environment, bundle / "model_repository") as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request, server: TritonServer) -> str:
    return server.endpoints.grpc_url if request.param == "grpc" else server.endpoints.http_url


def clips(batch: int, time_steps: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, time_steps, size, size, 3), dtype=np.uint8)


def test_answers_equal_in_process_onnxruntime(url: str, tiny_model) -> None:
    with TritonPredictor(url, tiny_model.contract) as predictor:
        for batch, time_steps in ((1, 16), (2, 9), (MAX_BATCH, 1), (2 * MAX_BATCH + 1, 16)):
            frames = clips(batch, time_steps, seed=batch)
            expected = tiny_model.predict(frames)
            answer = predictor.predict(frames)
            assert np.abs(answer.logits - expected.logits).max() < 1e-4
            assert np.abs(answer.probabilities - expected.probabilities).max() < 1e-4
            features = predictor.encode(frames)
            assert np.abs(features - tiny_model.encode(frames)).max() < 1e-4
            assert np.abs(predictor.classify(features).logits - expected.logits).max() < 1e-4


def test_the_client_is_a_predictor_and_learns_the_model_from_the_server(url: str, tiny_model) -> None:
    with TritonPredictor(url) as predictor:
        as_protocol: Predictor = predictor
        assert as_protocol.name == f"triton {url.partition(':')[0]}"
        assert (predictor.image_size, predictor.num_classes, predictor.max_batch_size) == (SIZE, 7, MAX_BATCH)
        assert predictor.labels() == tiny_model.spec.prompts.class_names


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (clips(1, 16, size=16), "Expected [-1,-1,32,32,3], got [1,16,16,16,3]"),
        (clips(1, 17), "'frames' has 17 frames a clip, expected 1 to 16"),
        (clips(1, 0), "'frames' has 0 frames a clip, expected 1 to 16"),
        (clips(0, 16), "holds no clip"),
        (clips(1, 16).astype(np.float32), "data-type is 'FP32', but model 'dfer' expects 'UINT8'"),
        (clips(1, 16).astype(np.float64), "has the dtype float64"),
    ],
    ids=["image size", "T=17", "T=0", "B=0", "float32", "float64"],
)
def test_wrong_frames_are_refused_in_one_sentence(url: str, tiny_model, frames: np.ndarray, said: str) -> None:
    with TritonPredictor(url) as predictor:
        with pytest.raises(DferDeployError) as refused:
            predictor.predict(frames)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
        good = clips(1, 16)
        assert np.abs(predictor.predict(good).logits - tiny_model.predict(good).logits).max() < 1e-4


def test_features_that_are_not_finite_are_refused(url: str) -> None:
    features = np.zeros((1, 3, 8), np.float32)
    features[0, 1, 2] = np.nan
    with TritonPredictor(url) as predictor, pytest.raises(DferDeployError, match="not finite"):
        predictor.classify(features)


def test_an_error_of_the_client_has_the_status_of_one(server: TritonServer) -> None:
    with grpc_client.InferenceServerClient(server.endpoints.grpc_url[7:]) as client:
        tensor = grpc_client.InferInput("frames", [1, 17, SIZE, SIZE, 3], "UINT8")
        tensor.set_data_from_numpy(clips(1, 17))
        with pytest.raises(InferenceServerException) as refused:
            client.infer("dfer", [tensor])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_unknown_model_and_broken_contract(url: str, tiny_model) -> None:
    with pytest.raises(DferDeployError, match="has no model 'other'"):
        TritonPredictor(url, "other")
    with pytest.raises(DferDeployError, match="is no ensemble"):
        TritonPredictor(url, "dfer_image_encoder")


def test_different_shapes_at_the_same_time(url: str, tiny_model) -> None:
    shapes = [(1, 16), (3, 9), (2, 16), (1, 1), (4, 5)] * 6

    def ask(index: int) -> float:
        frames = clips(*shapes[index], seed=index)
        with TritonPredictor(url) as predictor:
            return float(np.abs(predictor.predict(frames).logits - tiny_model.predict(frames).logits).max())

    with concurrent.futures.ThreadPoolExecutor(len(shapes)) as pool:
        assert max(pool.map(ask, range(len(shapes)))) < 1e-4


def test_1000_odd_requests_at_once_then_a_good_one(server: TritonServer, tiny_model) -> None:
    odd = [clips(1, 17), clips(1, 0), clips(1, 16, size=16), clips(1, 16).astype(np.float32), clips(5, 16)]
    with grpc_client.InferenceServerClient(server.endpoints.grpc_url[7:]) as client:

        def ask(index: int) -> str:
            frames = odd[index % len(odd)]
            tensor = grpc_client.InferInput(
                "frames", list(frames.shape), "UINT8" if frames.dtype == np.uint8 else "FP32"
            )
            tensor.set_data_from_numpy(frames)
            try:
                client.infer("dfer", [tensor])
            except InferenceServerException as error:
                return str(error.status())
            return "answered"

        with concurrent.futures.ThreadPoolExecutor(1000) as pool:
            assert set(pool.map(ask, range(1000))) <= {"StatusCode.INVALID_ARGUMENT", "StatusCode.UNAVAILABLE"}
    frames = clips(2, 16)
    with TritonPredictor(server.endpoints.grpc_url) as predictor:
        assert np.abs(predictor.predict(frames).logits - tiny_model.predict(frames).logits).max() < 1e-4


def test_interfaces_that_change_the_server_are_closed(server: TritonServer) -> None:
    with grpc_client.InferenceServerClient(server.endpoints.grpc_url[7:]) as client:
        for call in (
            lambda: client.load_model("dfer"),
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_trace_settings,
            lambda: client.update_log_settings({"log_verbose_level": 1}),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
    with http_client.InferenceServerClient(server.endpoints.http_url[7:]) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_model_repository_index()
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_system_shared_memory_status()


def test_the_server_listens_on_the_loopback_only(server: TritonServer) -> None:
    ends = server.endpoints
    wanted = {ends.http_port, ends.grpc_port, ends.metrics_port}
    listening = {
        (c.laddr.ip.removeprefix("::ffff:"), c.laddr.port)  # the HTTP service uses an IPv6 socket
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port in wanted
    }
    assert listening == {("127.0.0.1", port) for port in wanted}


def test_too_slow(server: TritonServer) -> None:
    for address in (server.endpoints.grpc_url, server.endpoints.http_url):
        with TritonPredictor(address) as predictor:
            predictor._timeout_s = 1e-6
            if address.startswith("http"):
                predictor._client.close()
                predictor._client = http_client.InferenceServerClient(address[7:], network_timeout=1e-6)
            with pytest.raises(DferDeployError, match="did not answer within 1e-06 s"):
                predictor.predict(clips(1, 16))


def test_real_perf_analyzer(environment: TritonEnvironment, server: TritonServer) -> None:
    rows = measure_load(environment, server.endpoints.grpc_url, "dfer", clips(2, 16), [3, 1], requests=20)
    assert [row.concurrency for row in rows] == [3, 1]
    for row in rows:
        assert row.throughput > 1
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert 0 < row.compute_infer_ms < row.avg_ms


def test_real_perf_analyzer_reports_failures(environment: TritonEnvironment, url: str) -> None:
    with pytest.raises(DferDeployError, match="'frames' has 17 frames a clip"):
        measure_load(environment, url, "dfer", clips(1, 17), [1], requests=5)
    with pytest.raises(DferDeployError, match="unknown model"):
        measure_load(environment, url, "other", clips(1, 16), [1])
    with pytest.raises(DferDeployError, match=r"did not finish concurrency 1 within 0\.01 s"):
        measure_load(environment, url, "dfer", clips(1, 16), [1], timeout_s=0.01)


def test_a_bundle_is_not_changed_by_serving_it(server: TritonServer, bundle: Path) -> None:
    open_bundle(bundle)
    assert not list(bundle.rglob("__pycache__"))


# What follows starts servers of its own, because it ends them.


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
    return set(Path("/tmp").glob("python_env_*"))


def wait_until_no_traces(pid: int, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while (left := traces(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def wait_until_no_new_folders(before: set[Path], limit_s: float = 10.0) -> None:
    """Another Triton on this machine may make such folders too, for as long as it takes to start or to end."""
    deadline = time.monotonic() + limit_s
    while (new := backend_folders() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert new == set()


def wait_for_its_end(server: TritonServer, limit_s: float = 10.0) -> None:
    """``server.wait()`` that fails instead of waiting for ever."""
    assert server._guard is not None
    server._guard.wait(limit_s)
    server.wait()


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
        assert len(children(server)[1]) == 2
    assert not server.log_file.exists()
    server.stop()


@pytest.mark.usefixtures("own_process")
def test_killed_server_is_an_error_and_leaves_nothing(environment: TritonEnvironment, bundle: Path) -> None:
    with (
        pytest.raises(DferDeployError, match="tritonserver was killed by signal 9; its log is "),
        TritonServer(environment, bundle / "model_repository") as server,
        TritonPredictor(server.endpoints.grpc_url) as predictor,
        TritonPredictor(server.endpoints.http_url) as other,
    ):
        children(server)[0].kill()
        for client in (predictor, other):
            with pytest.raises(DferDeployError, match="went away during a request"):
                client.predict(clips(1, 16))
        wait_for_its_end(server)
    assert server.log_file is not None
    assert server.log_file.exists()
    server.log_file.unlink()


@pytest.mark.usefixtures("own_process")
def test_killed_stub_ends_the_server_with_an_error(environment: TritonEnvironment, bundle: Path) -> None:
    with (
        pytest.raises(DferDeployError, match="the process of the model dfer_temporal_head died"),
        TritonServer(environment, bundle / "model_repository") as server,
    ):
        (stub,) = [stub for stub in children(server)[1] if "temporal_head" in " ".join(stub.cmdline())]
        stub.kill()
        wait_for_its_end(server)
    assert server.log_file is not None
    server.log_file.unlink()


@pytest.mark.usefixtures("own_process")
def test_killed_guard_is_an_error_and_leaves_no_process(environment: TritonEnvironment, bundle: Path) -> None:
    before, traces_before = backend_folders(), traces(os.getpid())
    with (
        pytest.raises(DferDeployError, match="the process that guards tritonserver was killed"),
        TritonServer(environment, bundle / "model_repository") as server,
    ):
        assert server._guard is not None
        server._guard.kill()
        wait_for_its_end(server)
    # At once, not when the stubs have noticed.
    assert traces(os.getpid()) == traces_before
    assert server.log_file is not None
    server.log_file.unlink()
    # Nobody who knows the folder is left; it is empty.
    for folder in backend_folders() - before:
        folder.rmdir()


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
        with pytest.raises(DferDeployError, match=f"the gRPC port {port} is taken by process {os.getpid()} "):
            TritonServer(environment, bundle / "model_repository", grpc_port=port).start()


@pytest.mark.usefixtures("own_process")
def test_a_start_that_takes_too_long(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    server = TritonServer(
        environment, bundle / "model_repository", start_timeout_s=0.1, exit_timeout_s=0, log_file=log
    )  # fmt: skip
    with pytest.raises(DferDeployError, match=r"did not answer within 0\.1 s \(.+\); its log is .*triton\.log"):
        server.start()


@pytest.mark.usefixtures("own_process")
def test_a_folder_that_is_no_repository(environment: TritonEnvironment, tmp_path: Path) -> None:
    with pytest.raises(DferDeployError, match="holds no ensemble to serve"):
        TritonServer(environment, tmp_path).start()
    (tmp_path / "dfer").mkdir()
    (tmp_path / "dfer" / "config.pbtxt").write_text("name: 7")
    with pytest.raises(DferDeployError, match=r"config\.pbtxt is no model configuration"):
        TritonServer(environment, tmp_path).start()


def test_unwritable_log(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DferDeployError, match=r"cannot write the server's log .*: Is a directory"):
        TritonServer(environment, bundle / "model_repository", log_file=tmp_path).start()


@pytest.mark.usefixtures("own_process")
def test_damaged_model_is_told_from_the_log(environment: TritonEnvironment, bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(bundle / "model_repository", repository)
    (repository / "dfer_temporal_head" / "1" / "model.onnx").write_bytes(b"no graph")
    log = tmp_path / "triton.log"
    with pytest.raises(DferDeployError) as failed:
        TritonServer(environment, repository, log_file=log).start()
    assert "failed to load 'dfer_temporal_head' version 1" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert str(log) in str(failed.value)
    assert log.exists()


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
        frames = clips(1, 16)
        assert np.abs(predictor.predict(frames).logits - tiny_model.predict(frames).logits).max() < 1e-4


def test_repository_for_the_onnxruntime_backend_is_understood(
    environment: TritonEnvironment, onnxruntime_bundle: Path
) -> None:
    """This Triton has no onnxruntime backend; everything before that must have passed."""
    with pytest.raises(DferDeployError) as failed:
        TritonServer(environment, onnxruntime_bundle / "model_repository").start()
    message = str(failed.value)
    assert "onnxruntime" in message
    assert "backend" in message
    Path(message.rpartition("its log is ")[2]).unlink()


def test_signals_reach_a_server_whose_guard_ignores_them(environment: TritonEnvironment, bundle: Path) -> None:
    with TritonServer(environment, bundle / "model_repository", exit_timeout_s=5) as server:
        assert server._guard is not None
        os.kill(server._guard.pid, signal.SIGTERM)
        tritonserver, _ = children(server)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 8
        assert not tritonserver.is_running()
