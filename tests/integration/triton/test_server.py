"""A real Triton, started the way ``serve`` starts it, asked over gRPC and HTTP."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tritonclient import grpc as grpc_client
from tritonclient import http as http_client
from tritonclient.utils import InferenceServerException

from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client import Client
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.errors import (
    ClipError,
    DferDeployError,
    ModelNotFoundError,
    RequestRefusedError,
    ServerError,
    SettingError,
)
from dfer_deploy.runtimes.predictor import Predictor
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.perf_analyzer import measure_load
from dfer_deploy.triton.server import TritonServer
from dfer_deploy.triton.statistics import queued

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
    ("frames", "kind", "said"),
    [
        (clips(1, 16, size=16), RequestRefusedError, "Expected [-1,-1,32,32,3], got [1,16,16,16,3]"),
        (clips(1, 17), RequestRefusedError, "'frames' has 17 frames a clip, expected 1 to 16"),
        (clips(1, 0), RequestRefusedError, "'frames' has 0 frames a clip, expected 1 to 16"),
        (clips(0, 16), ClipError, "holds no clip"),
        (clips(1, 16).astype(np.float32), RequestRefusedError, "data-type is 'FP32', but model 'dfer' expects 'UINT8'"),
        (clips(1, 16).astype(np.float64), ClipError, "has the dtype float64"),
    ],
    ids=["image size", "T=17", "T=0", "B=0", "float32", "float64"],
)
def test_wrong_frames_are_refused_in_one_sentence(
    url: str, tiny_model, frames: np.ndarray, kind: type[DferDeployError], said: str
) -> None:
    with TritonPredictor(url) as predictor:
        with pytest.raises(kind) as refused:
            predictor.predict(frames)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
        good = clips(1, 16)
        assert np.abs(predictor.predict(good).logits - tiny_model.predict(good).logits).max() < 1e-4


def test_features_that_are_not_finite_are_refused(url: str) -> None:
    features = np.zeros((1, 3, 8), np.float32)
    features[0, 1, 2] = np.nan
    with TritonPredictor(url) as predictor, pytest.raises(RequestRefusedError):
        predictor.classify(features)


def test_an_error_of_the_client_has_the_status_of_one(server: TritonServer) -> None:
    with grpc_client.InferenceServerClient(server.endpoints.grpc_url[7:]) as client:
        tensor = grpc_client.InferInput("frames", [1, 17, SIZE, SIZE, 3], "UINT8")
        tensor.set_data_from_numpy(clips(1, 17))
        with pytest.raises(InferenceServerException) as refused:
            client.infer("dfer", [tensor])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_unknown_model_and_broken_contract(url: str, tiny_model) -> None:
    with pytest.raises(ModelNotFoundError):
        TritonPredictor(url, "other")
    with pytest.raises(SettingError, match="'dfer_image_encoder'"):
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
            client.get_system_shared_memory_status,
            lambda: client.register_system_shared_memory("region", "/region", 1),
            client.get_trace_settings,
            lambda: client.update_log_settings({"log_verbose_level": 1}),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            client.load_model("dfer")
        assert "dfer" in {model.name for model in client.get_model_repository_index().models}
    with http_client.InferenceServerClient(server.endpoints.http_url[7:]) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_system_shared_memory_status()
        assert "dfer" in {model["name"] for model in client.get_model_repository_index()}


def test_deeply_nested_json_is_refused(server: TritonServer, tiny_model) -> None:
    """200 kB ended the server: each level takes some of the stack of its parser."""
    for levels in (200_000, 5_000_000):
        with socket.create_connection(("127.0.0.1", server.endpoints.http_port)) as connection:
            head = f"POST /v2/models/dfer/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {levels}\r\n\r\n"
            connection.sendall(head.encode() + b"[" * levels)
            assert connection.recv(4096).startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    with TritonPredictor(server.endpoints.grpc_url) as predictor:
        predictor.predict(clips(1, 16))


def test_the_key_in_the_command_line_opens_nothing(server: TritonServer) -> None:
    """A local user reads it in the list of processes, and sends it in every way that a client can."""
    assert server._guard is not None
    (tritonserver,) = psutil.Process(server._guard.pid).children()
    words = [word.split(":", 1)[1] for word in tritonserver.cmdline() if "restricted" in word]
    name, _, value = words[0].partition("=")
    for key in (name, name.lower(), f"triton-grpc-protocol-{name}", f"triton-grpc-protocol-{name.lower()}"):
        for sent in (value, value.replace("\n", "\r\n "), value.replace("\n", " "), value.split("\n")[0]):
            with socket.create_connection(("127.0.0.1", server.endpoints.http_port)) as connection:
                request = f"GET /v2/systemsharedmemory/status HTTP/1.1\r\nHost: x\r\n{key}: {sent}\r\n\r\n"
                connection.sendall(request.encode())
                assert not connection.recv(4096).startswith(b"HTTP/1.1 200"), (key, sent)
            with (
                grpc_client.InferenceServerClient(server.endpoints.grpc_url[7:]) as client,
                pytest.raises((InferenceServerException, ValueError)),
            ):
                client.get_system_shared_memory_status(headers={key.lower(): sent})


def test_other_users_cannot_read_the_shared_memory(server: TritonServer) -> None:
    assert list(Path("/dev/shm").glob(f"{server._mark}*")) == []
    assert server._guard is not None
    (tritonserver,) = psutil.Process(server._guard.pid).children()
    for process in (tritonserver, *tritonserver.children()):
        private = Path(f"/proc/{process.pid}/root/dev/shm")
        assert list(private.glob(f"{server._mark}*"))
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_the_server_listens_on_the_loopback_only(server: TritonServer) -> None:
    ends = server.endpoints
    wanted = {ends.http_port, ends.grpc_port, ends.metrics_port}
    listening = {
        (c.laddr.ip.removeprefix("::ffff:"), c.laddr.port)  # the HTTP service uses an IPv6 socket
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port in wanted
    }
    assert listening == {("127.0.0.1", port) for port in wanted}


def test_real_perf_analyzer(environment: TritonEnvironment, server: TritonServer) -> None:
    rows = measure_load(environment, server.endpoints.grpc_url, "dfer", clips(2, 16), [3, 1], requests=20)
    assert [row.concurrency for row in rows] == [3, 1]
    for row in rows:
        assert row.throughput > 1
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert 0 < row.compute_infer_ms < row.avg_ms


def test_what_requests_waited_is_that_of_the_ensembles_steps(server: TritonServer) -> None:
    ends = server.endpoints
    with Client(ends.grpc_url) as client, concurrent.futures.ThreadPoolExecutor(6) as pool:
        client.predict(clips(1, 16))  # asks for the labels too
        time.sleep(0.5)  # Triton counts a request after it was answered
        before = queued(ends.grpc_url, "dfer")
        list(pool.map(client.predict, clips(12, 16)))
    deadline = time.monotonic() + 30
    while (after := queued(ends.grpc_url, "dfer"))["requests"] < before["requests"] + 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert queued(ends.http_url, "dfer") == after
    assert (after - before)["requests"] == 12
    with contextlib.closing(grpc_client.InferenceServerClient(ends.grpc_url.removeprefix("grpc://"))) as raw:
        stats = [raw.get_inference_statistics(f"dfer_{part}") for part in ("image_encoder", "temporal_head")]
    assert after["ns"] == sum(found.model_stats[0].inference_stats.queue.ns for found in stats) > before["ns"]
    head = queued(ends.grpc_url, "dfer_temporal_head")
    assert head["ns"] == stats[1].model_stats[0].inference_stats.queue.ns


def test_real_perf_analyzer_reports_failures(environment: TritonEnvironment, url: str) -> None:
    with pytest.raises(ServerError):
        measure_load(environment, url, "dfer", clips(1, 17), [1], requests=5)
    with pytest.raises(ServerError):
        measure_load(environment, url, "other", clips(1, 16), [1])
    with pytest.raises(ServerError):
        measure_load(environment, url, "dfer", clips(1, 16), [1], timeout_s=0.01)


def test_a_bundle_is_not_changed_by_serving_it(server: TritonServer, bundle: Path) -> None:
    open_bundle(bundle)
    assert not list(bundle.rglob("__pycache__"))


# What follows starts servers of its own, because it ends them.
