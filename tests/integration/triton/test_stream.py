"""Streams without server state through real Tritons, asked by a plain tritonclient and by ours."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc as grpcio
import numpy as np
import psutil
import pytest
from encoded_images import encoded
from PIL import Image
from tiny import clips_of, tiny_model
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.client import Client
from dfer_deploy.clips.sampling import padded
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.specs import encoder_id
from dfer_deploy.triton.address import parse_url
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer

EXACT = 1e-4
OUTPUTS = ("logits", "probabilities", "frame_features", "encoder_id")


@pytest.fixture(scope="module")
def exported(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two instances of every model, and requests that wait long enough to be batched."""
    options = ExportOptions("embedded", ServingOptions(16, instances=2, queue_delay_us=2000))
    return export_to_folder(own_checkpoint, tmp_path_factory.mktemp("stream") / "bundle", options)[0]


@pytest.fixture(scope="module")
def server(environment: TritonEnvironment, exported: Bundle) -> Iterator[TritonServer]:
    with TritonServer(environment, exported.model_repository) as running:
        yield running


@pytest.fixture(scope="module")
def offline(exported: Bundle) -> Iterator[OnnxRuntimePredictor]:
    with OnnxRuntimePredictor.from_bundle(exported) as predictor:
        yield predictor


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Any]:
    library, url = (grpc, server.endpoints.grpc_url) if request.param == "grpc" else (http, server.endpoints.http_url)
    with library.InferenceServerClient(parse_url(url).netloc) as opened:
        yield opened


def asked(client: Any, model: str = "dfer_stream", **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """One request, as anybody's client sends it."""
    library: Any = http if isinstance(client, http.InferenceServerClient) else grpc
    types = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32", "object": "BYTES", "int64": "INT64"}
    tensors = []
    for name, array in inputs.items():
        tensor = library.InferInput(name, list(array.shape), types[array.dtype.name])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    result = client.infer(model, tensors)
    return {name: result.as_numpy(name) for name in OUTPUTS}


class PlainStream:
    """Thirty lines of anybody's client: what it remembers are the features."""

    def __init__(self) -> None:
        self.recent: list[np.ndarray] = []

    def push(self, client: Any, frame: np.ndarray) -> np.ndarray:
        """Sends a frame [H, W, 3]; gives the logits [C]."""
        recent = np.full((1, 15, 64), np.nan, np.float32)
        if self.recent:
            recent[0, : len(self.recent)] = self.recent
        answer = asked(
            client,
            frames=np.ascontiguousarray(frame)[None, None],
            recent_features=recent,
            recent_count=np.int32([[len(self.recent)]]),
        )
        self.recent = [*self.recent, answer["frame_features"][0, 0]][-15:]
        return answer["logits"][0]


def frames_of(seed: int, count: int) -> np.ndarray:
    """Frames of several clips, one after the other: uint8 [count, 32, 32, 3]."""
    return clips_of(-(-count // 16), seed=seed).reshape(-1, 32, 32, 3)[:count]


def expected(offline: OnnxRuntimePredictor, frames: np.ndarray) -> np.ndarray:
    """The logits of the window that ends with each frame, [T, C]."""
    windows = [padded([*frames[max(0, end - 16) : end]]) for end in range(1, len(frames) + 1)]
    parts = [offline.predict(np.stack(windows[start : start + 16])).logits for start in range(0, len(windows), 16)]
    return np.concatenate(parts)


def test_interleaved_streams_answer_as_the_offline_model(client: Any, offline: OnnxRuntimePredictor) -> None:
    # The first ends early, the second begins late, the third is as long as two windows and a half.
    streams = [(frames_of(1, 11), 0), (frames_of(2, 25), 5), (frames_of(3, 40), 0)]
    plain = [PlainStream() for _ in streams]
    answers: list[list[np.ndarray]] = [[] for _ in streams]
    for moment in range(40):
        for index, (frames, begins) in enumerate(streams):
            if 0 <= moment - begins < len(frames):
                answers[index].append(plain[index].push(client, frames[moment - begins]))
    for (frames, _), found in zip(streams, answers, strict=True):
        np.testing.assert_allclose(np.stack(found), expected(offline, frames), atol=EXACT, rtol=0)


def test_the_answer_depends_on_the_order_of_the_frames(offline: OnnxRuntimePredictor) -> None:
    frames = frames_of(3, 16)
    answers = [offline.predict(clip[None]).logits for clip in (frames, frames[::-1], np.roll(frames, 1, axis=0))]
    assert min(np.abs(answers[0] - other).max() for other in answers[1:]) > 0.01


def test_a_batch_of_streams_with_every_count_and_nan_in_unused_rows(
    client: Any, exported: Bundle, offline: OnnxRuntimePredictor
) -> None:
    frames = frames_of(4, 16)
    features = offline.encode(frames[None])[0]
    counts = np.arange(16, dtype=np.int32)[:, None]
    recent = np.full((16, 15, 64), np.nan, np.float32)
    for count in range(16):
        recent[count, :count] = features[:count]
    newest = np.repeat(frames[15:], 16, axis=0)[:, None]
    answer = asked(client, frames=newest, recent_features=recent, recent_count=counts)
    for count in range(16):
        window = padded([*features[:count], features[15]])
        np.testing.assert_allclose(
            answer["logits"][count], offline.classify(window[None]).logits[0], atol=EXACT, rtol=0
        )
    np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(answer["frame_features"][:, 0], np.repeat(features[15:], 16, axis=0), atol=EXACT)
    assert answer["encoder_id"].tolist() == [[encoder_id(exported.graphs_sha256[0])]] * 16


@pytest.mark.parametrize(("count", "used"), [(-1, 0), (-(2**31), 0), (16, 15), (2**31 - 1, 15)])
def test_a_count_that_cannot_be_is_clamped(client: Any, offline: OnnxRuntimePredictor, count: int, used: int) -> None:
    frames = frames_of(5, 16)
    features = offline.encode(frames[None])[0]
    answer = asked(
        client, frames=frames[None, 15:], recent_features=features[None, :15], recent_count=np.int32([[count]])
    )
    window = padded([*features[:used], features[15]])
    np.testing.assert_allclose(answer["logits"], offline.classify(window[None]).logits, atol=EXACT, rtol=0)


def test_what_is_no_step_of_a_stream_is_refused_and_others_go_on(client: Any, offline: OnnxRuntimePredictor) -> None:
    frames = frames_of(6, 2)
    good = {
        "frames": frames[None, :1],
        "recent_features": np.zeros((1, 15, 64), np.float32),
        "recent_count": np.int32([[0]]),
    }
    nan_in_use = good["recent_features"].copy()
    nan_in_use[0, 3] = np.nan
    for wrong in (
        {"frames": frames[None, :1, :16]},
        {"frames": frames[None]},
        {"recent_features": np.zeros((1, 16, 64), np.float32)},
        {"recent_features": np.zeros((1, 15, 63), np.float32)},
        {"recent_features": np.zeros((2, 15, 64), np.float32)},
        {"recent_count": np.int64([[0]])},
        {"recent_count": np.int32([[0, 0]])},
        {"recent_features": nan_in_use, "recent_count": np.int32([[4]])},
    ):
        with pytest.raises(InferenceServerException):
            asked(client, **good | wrong)
    with pytest.raises(InferenceServerException):
        asked(client, frames=good["frames"])  # as clients of streams with state do
    np.testing.assert_allclose(asked(client, **good)["logits"], expected(offline, frames[:1]), atol=EXACT, rtol=0)


def test_encoded_streams_answer_as_those_of_decoded_frames(client: Any, offline: OnnxRuntimePredictor) -> None:
    frames = frames_of(7, 16)
    features = offline.encode(frames[None])[0]
    images = np.empty((4, 1), object)
    images[:, 0] = [encoded(Image.fromarray(frame), "PNG") for frame in frames[12:]]
    recent = {
        "recent_features": np.repeat(features[None, :15], 4, axis=0),
        "recent_count": np.int32([[12], [12], [15], [0]]),
    }
    answer = asked(client, "dfer_encoded_stream", images=images, **recent)
    of_frames = asked(client, frames=frames[12:, None], **recent)
    for name in OUTPUTS:
        np.testing.assert_allclose(answer[name], of_frames[name], atol=EXACT, rtol=0)


def test_frames_of_many_streams_are_run_together_and_do_not_mix(
    server: TritonServer, offline: OnnxRuntimePredictor
) -> None:
    """With two instances of the encoder under load: every answer is right, and executions held several streams."""
    netloc = parse_url(server.endpoints.grpc_url).netloc

    def follow(seed: int) -> float:
        frames, stream = frames_of(50 + seed, 32), PlainStream()
        with grpc.InferenceServerClient(netloc) as own:
            answers = np.stack([stream.push(own, frame) for frame in frames])
        return float(np.abs(answers - expected(offline, frames)).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(follow, range(8))) < EXACT
    with grpc.InferenceServerClient(netloc) as client:
        for model in ("dfer_image_encoder", "dfer_window", "dfer_temporal_head"):
            (statistics,) = client.get_inference_statistics(model).model_stats
            assert statistics.inference_count > statistics.execution_count


def test_perf_analyzer_follows_streams(environment: TritonEnvironment, server: TritonServer, tmp_path: Path) -> None:
    """With JSON as in docs/clients, and without. (Its random bytes are no finite features, so they are refused.)"""
    data = tmp_path / "stream.json"
    frame = {"content": frames_of(8, 1).reshape(-1).tolist(), "shape": [1, 32, 32, 3]}
    recent = {"content": [0.0] * 15 * 64, "shape": [15, 64]}
    data.write_text(json.dumps({"data": [{"frames": frame, "recent_features": recent, "recent_count": [15]}]}))
    for source in (str(data), "zero"):
        report = tmp_path / "report.csv"
        command = [
            str(environment.perf_analyzer),
            *("-m", "dfer_stream", "-u", parse_url(server.endpoints.grpc_url).netloc, "-i", "grpc", "-f", str(report)),
            *("--concurrency-range=2", f"--input-data={source}"),
            *("--measurement-mode=count_windows", "--measurement-request-count=40", "--stability-percentage=1000000"),
        ]
        done = subprocess.run(
            command, env=environment.process_environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (row,) = csv.DictReader(report.read_text().splitlines())
        assert float(row["Inferences/Second"]) > 1


class Balancer(grpcio.GenericRpcHandler):
    """Sends every request to the next server in turn, whether that is alive or not."""

    def __init__(self, *netlocs: str) -> None:
        self.channels = [
            grpcio.insecure_channel(netloc, [("grpc.max_reconnect_backoff_ms", 200)]) for netloc in netlocs
        ]
        self.asked = 0
        self._service = grpcio.server(ThreadPoolExecutor(4))
        self._service.add_generic_rpc_handlers((self,))
        self.url = f"grpc://127.0.0.1:{self._service.add_insecure_port('127.0.0.1:0')}"
        self._service.start()

    def service(self, details: Any) -> Any:
        def forwarded(request: bytes, context: Any) -> bytes:
            self.asked += 1
            method = self.channels[self.asked % len(self.channels)].unary_unary(details.method)
            try:
                return method(request, timeout=20)
            except grpcio.RpcError as error:
                context.abort(error.code(), error.details())
                raise

        return grpcio.unary_unary_rpc_method_handler(forwarded)

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop(0)
        for channel in self.channels:
            channel.close()


def netloc(server: TritonServer) -> str:
    return parse_url(server.endpoints.grpc_url).netloc


def kill(server: TritonServer) -> None:
    """Ends tritonserver as the kernel does it when memory is short."""
    guard = server._guard
    assert guard is not None
    (triton,) = [child for child in psutil.Process(guard.pid).children() if child.name() == "tritonserver"]
    os.kill(triton.pid, signal.SIGKILL)
    guard.wait()


@pytest.mark.slow
def test_a_stream_over_two_servers_of_which_one_is_killed_and_restarted(
    environment: TritonEnvironment, server: TritonServer, exported: Bundle, offline: OnnxRuntimePredictor
) -> None:
    frames = frames_of(9, 200)
    undisturbed = expected(offline, frames)
    with ExitStack() as stack:
        second = TritonServer(environment, exported.model_repository, exit_timeout_s=0)
        stack.callback(second.stop)
        second.start()
        ports = second.endpoints
        balancer = stack.enter_context(Balancer(netloc(server), netloc(second)))
        client = stack.enter_context(Client(balancer.url, retries=100))
        stream, images = (stack.enter_context(client.stream()) for _ in range(2))
        for index, frame in enumerate(frames):
            if index == 60:
                kill(second)
            if index == 120:
                second.stop()
                second = TritonServer(
                    environment,
                    exported.model_repository,
                    exit_timeout_s=0,
                    http_port=ports.http_port,
                    grpc_port=ports.grpc_port,
                )
                stack.callback(second.stop)
                second.start()
            for answer in (stream.push(frame), images.push(encoded(Image.fromarray(frame), "PNG"))):
                assert not answer.resumed
                assert answer.frames == min(16, index + 1)
                found = np.array(list(answer.logits.values()))
                np.testing.assert_allclose(found, undisturbed[index], atol=EXACT, rtol=0, err_msg=f"frame {index}")
        with grpc.InferenceServerClient(netloc(second)) as restarted:
            (statistics,) = restarted.get_inference_statistics("dfer_stream").model_stats
        assert statistics.inference_count > 60, "it is asked again"


@pytest.mark.slow
def test_a_rollout_of_other_weights_behind_one_address_gives_no_mixed_answer(
    environment: TritonEnvironment,
    server: TritonServer,
    exported: Bundle,
    offline: OnnxRuntimePredictor,
    tmp_path: Path,
) -> None:
    other_model = tiny_model(seed=5)
    save_checkpoint(tmp_path / "other.pt", other_model, {})
    other, _ = export_to_folder(tmp_path / "other.pt", tmp_path / "other", ExportOptions("embedded", ServingOptions(4)))
    assert encoder_id(other.graphs_sha256[0]) != encoder_id(exported.graphs_sha256[0])
    frames = frames_of(10, 60)
    with TorchPredictor(other_model) as predictor:
        of_new = expected(predictor, frames)  # type: ignore[arg-type]
    of_old = expected(offline, frames)
    assert np.abs(of_new - of_old).max(axis=1).min() > 100 * EXACT
    with (
        TritonServer(environment, other.model_repository, exit_timeout_s=0) as new,
        Balancer(netloc(server), netloc(server)) as balancer,
        Client(balancer.url) as client,
        client.stream() as stream,
    ):
        resumed = {}
        for index, frame in enumerate(frames):
            if index in (20, 40):  # first one of two, then both
                balancer.channels[index // 20 - 1] = grpcio.insecure_channel(netloc(new))
            answer = stream.push(frame)
            found, resumed[index] = np.array(list(answer.logits.values())), answer.resumed
            errors = [float(np.abs(found - logits[index]).max()) for logits in (of_old, of_new)]
            allowed = errors if 20 <= index < 40 else errors[index >= 40 :][:1]
            assert min(allowed) < EXACT, f"frame {index}: {errors}"
        assert [index for index in resumed if resumed[index] and index >= 40] == [40]
        assert not any(resumed[index] for index in range(20))
