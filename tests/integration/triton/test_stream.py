"""Live streams through a real Triton: one frame a request, answered as the offline model answers the window."""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import clips_of
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

from dfer_deploy.bundle import Bundle, ServingOptions, open_bundle
from dfer_deploy.client import Client
from dfer_deploy.client.address import parse_url
from dfer_deploy.errors import DferDeployError, NoPlaceError
from dfer_deploy.export.configure import configure_bundle
from dfer_deploy.export.pipeline import ExportOptions, export_bundle
from dfer_deploy.runtimes.onnxruntime import OnnxRuntimePredictor
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer

STREAMS, IDLE_S = 3, 1.0


@pytest.fixture(scope="module")
def exported(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose answer depends on the order of the frames. Requests wait long enough to be batched."""
    serving = ServingOptions(16, queue_delay_us=5000, max_streams=STREAMS, stream_idle_s=IDLE_S)
    options = ExportOptions("embedded", serving)
    return export_bundle(own_checkpoint, tmp_path_factory.mktemp("stream") / "bundle", options)[0]


@pytest.fixture(scope="module")
def server(environment: TritonEnvironment, exported: Bundle) -> Iterator[TritonServer]:
    with TritonServer(environment, exported.model_repository) as running:
        yield running


@pytest.fixture(scope="module")
def offline(exported: Bundle) -> Iterator[OnnxRuntimePredictor]:
    with OnnxRuntimePredictor.from_bundle(exported) as predictor:
        yield predictor


@pytest.fixture
def client(server: TritonServer) -> Iterator[Any]:
    with grpc.InferenceServerClient(parse_url(server.endpoints.grpc_url).netloc) as opened:
        yield opened


def push(
    client: Any, name: int | str, frame: np.ndarray, *, start: bool = False, end: bool = False, **settings: Any
) -> np.ndarray:
    """Sends a frame [H, W, 3]; gives the logits [C]."""
    tensor = (http if isinstance(client, http.InferenceServerClient) else grpc).InferInput(
        "frames", [1, 1, *frame.shape], "UINT8"
    )
    tensor.set_data_from_numpy(np.ascontiguousarray(frame)[None, None])
    result = client.infer("dfer_stream", [tensor], sequence_id=name, sequence_start=start, sequence_end=end, **settings)
    logits = result.as_numpy("logits")
    assert logits.shape == result.as_numpy("probabilities").shape == (1, 3)
    return logits[0]


def refusal(*args: Any, **settings: Any) -> str:
    with pytest.raises(InferenceServerException) as refused:
        push(*args, **settings)
    return f"{refused.value.status()}: {refused.value.message()}"


def window(frames: np.ndarray) -> np.ndarray:
    last = frames[-16:]
    return np.concatenate([last, np.repeat(last[-1:], 16 - len(last), axis=0)])[None]


def frames_of(seed: int, count: int) -> np.ndarray:
    """Frames of several clips, one after the other: uint8 [count, 32, 32, 3]."""
    return clips_of(-(-count // 16), seed=seed).reshape(-1, 32, 32, 3)[:count]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_interleaved_streams_answer_as_the_offline_model(
    server: TritonServer, offline: OnnxRuntimePredictor, scheme: str
) -> None:
    library: Any = {"grpc": grpc, "http": http}[scheme]
    url = server.endpoints.grpc_url if scheme == "grpc" else server.endpoints.http_url
    # The first ends early, the second begins late, the third is as long as two windows and a half.
    streams: dict[int | str, np.ndarray] = {
        7: frames_of(1, 11),
        "camera 1": frames_of(2, 25),
        2**63 - 1: frames_of(3, 40),
    }
    begins = {7: 0, "camera 1": 5, 2**63 - 1: 0}
    steps = 0
    with library.InferenceServerClient(parse_url(url).netloc) as client:
        for moment in range(40):
            for name, frames in streams.items():
                time_step = moment - begins[name]
                if 0 <= time_step < len(frames):
                    answer = push(
                        client, name, frames[time_step], start=time_step == 0, end=time_step == len(frames) - 1
                    )
                    expected = offline.predict(window(frames[: time_step + 1])).logits[0]
                    np.testing.assert_allclose(answer, expected, atol=1e-4, rtol=0)
                    steps += 1
    assert steps == 11 + 25 + 40


def test_the_answer_depends_on_the_order_of_the_frames(offline: OnnxRuntimePredictor) -> None:
    frames = frames_of(3, 16)
    answers = [offline.predict(window(clip)).logits for clip in (frames, frames[::-1], np.roll(frames, 1, axis=0))]
    assert min(np.abs(answers[0] - other).max() for other in answers[1:]) > 0.01


def test_a_number_and_its_digits_are_two_streams(client: Any, offline: OnnxRuntimePredictor) -> None:
    one, other = frames_of(4, 2), frames_of(5, 2)
    for step in (0, 1):
        for name, frames in ((12, one), ("12", other)):
            answer = push(client, name, frames[step], start=step == 0, end=step == 1)
            np.testing.assert_allclose(answer, offline.predict(window(frames[: step + 1])).logits[0], atol=1e-4, rtol=0)


def test_start_begins_anew_without_an_end(client: Any, offline: OnnxRuntimePredictor) -> None:
    frames = frames_of(6, 20)
    for step in range(18):
        push(client, "again", frames[step], start=step == 0)
    answer = push(client, "again", frames[18], start=True)
    np.testing.assert_allclose(answer, offline.predict(window(frames[18:19])).logits[0], atol=1e-4, rtol=0)
    answer = push(client, "again", frames[19], end=True)
    np.testing.assert_allclose(answer, offline.predict(window(frames[18:20])).logits[0], atol=1e-4, rtol=0)


def test_a_stream_that_has_ended_was_idle_or_never_began_is_refused_in_tritons_words(client: Any) -> None:
    (frame,) = frames_of(7, 1)
    said = "inference request for sequence {} to model 'dfer_stream_head' must specify the START flag on the first"
    push(client, 20, frame, start=True, end=True)
    for name in (20, "never"):
        message = refusal(client, name, frame)
        assert "INVALID_ARGUMENT" in message
        assert said.format(name) in message
    push(client, 21, frame, start=True)
    time.sleep(IDLE_S / 2)
    push(client, 21, frame)
    time.sleep(2 * IDLE_S + 0.5)
    assert said.format(21) in refusal(client, 21, frame)
    assert "must specify a non-zero or non-empty correlation ID" in refusal(client, 0, frame, start=True)


def test_a_stream_too_many_waits_for_an_end(client: Any, server: TritonServer) -> None:
    (frame,) = frames_of(8, 1)
    time.sleep(2 * IDLE_S + 0.5)  # until no other test's stream is left
    for name in range(31, 31 + STREAMS):
        push(client, name, frame, start=True)
    # A request may say how long it would wait, in microseconds.
    message = refusal(client, "impatient", frame, start=True, timeout=100_000)
    assert "UNAVAILABLE" in message
    assert "timeout of the corresponding sequence has been expired" in message
    netloc = parse_url(server.endpoints.grpc_url).netloc
    with ThreadPoolExecutor(1) as pool, grpc.InferenceServerClient(netloc) as other:
        waiting = pool.submit(push, other, "patient", frame, start=True, end=True)
        time.sleep(0.2)
        assert not waiting.done()
        push(client, 31, frame, end=True)
        expected = push(client, 32, frame, start=True)
        np.testing.assert_allclose(waiting.result(timeout=5), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_client_is_told_that_there_are_too_many_streams(client: Any, server: TritonServer, scheme: str) -> None:
    (frame,) = frames_of(8, 1)
    time.sleep(2 * IDLE_S + 0.5)  # until no other test's stream is left
    url = server.endpoints.grpc_url if scheme == "grpc" else server.endpoints.http_url
    with Client(url, deadline_s=IDLE_S / 2) as impatient, Client(url) as patient:
        assert impatient.labels == patient.labels
        for name in range(61, 61 + STREAMS):
            push(client, name, frame, start=True)
        stream = impatient.stream()
        with pytest.raises(NoPlaceError, match="follows as many streams as it may, and none ended in time"):
            stream.push(frame)
        # The deadline is a minute, but not for a place.
        with patient.stream(place_timeout_s=0.1) as hasty, pytest.raises(NoPlaceError):
            hasty.push(frame)
        with patient.stream() as waiting:  # until one of the others is forgotten
            assert waiting.push(frame).frames == 1
        # The same stream goes on, now that there is room.
        assert stream.push(frame).frames == 1
        stream.close()


def test_a_frame_of_another_shape_is_refused_and_its_stream_goes_on(client: Any, offline: OnnxRuntimePredictor) -> None:
    frames = frames_of(9, 2)
    push(client, 40, frames[0], start=True)
    assert "INVALID_ARGUMENT" in refusal(client, 40, frames[0][:16])
    answer = push(client, 40, frames[1], end=True)
    np.testing.assert_allclose(answer, offline.predict(window(frames)).logits[0], atol=1e-4, rtol=0)


def test_frames_of_several_streams_are_encoded_together(server: TritonServer, offline: OnnxRuntimePredictor) -> None:
    """Asked at the same time; every answer is right, and some executions held frames of more than one stream."""
    netloc = parse_url(server.endpoints.grpc_url).netloc

    def follow(seed: int) -> None:
        frames = frames_of(50 + seed, 40)
        with grpc.InferenceServerClient(netloc) as own:
            for step, frame in enumerate(frames):
                answer = push(own, 50 + seed, frame, start=step == 0, end=step == 39)
                if step % 5 == 0:
                    expected = offline.predict(window(frames[: step + 1])).logits[0]
                    np.testing.assert_allclose(answer, expected, atol=1e-4, rtol=0)

    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(follow, range(STREAMS)))
    with grpc.InferenceServerClient(netloc) as client:
        (statistics,) = client.get_inference_statistics("dfer_image_encoder").model_stats
    assert statistics.inference_count > statistics.execution_count


def test_perf_analyzer_follows_sequences(environment: TritonEnvironment, server: TritonServer, tmp_path: Path) -> None:
    report = tmp_path / "report.csv"
    command = [
        str(environment.perf_analyzer),
        *("-m", "dfer_stream", "-u", parse_url(server.endpoints.grpc_url).netloc, "-i", "grpc", "-f", str(report)),
        *("--sequence-length=20", "--sequence-id-range=1000:2000", "--concurrency-range=2", "--input-data=random"),
        *("--measurement-mode=count_windows", "--measurement-request-count=40", "--stability-percentage=1000000"),
    ]
    done = subprocess.run(
        command, env=environment.process_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 1


def test_the_limits_follow_configure(exported: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(exported.path, tmp_path / "copy"))
    serving = dataclasses.replace(exported.manifest.serving, max_streams=5, stream_idle_s=2.5)
    assert configure_bundle(copy, serving)[1]
    text = (copy / "model_repository" / "dfer_stream_head" / "config.pbtxt").read_text()
    assert "max_candidate_sequences: 5" in text
    assert "max_sequence_idle_microseconds: 2500000" in text
    assert open_bundle(copy).manifest.serving == serving
    with pytest.raises(DferDeployError, match="the number of streams is 0, expected 1 to 4096"):
        dataclasses.replace(serving, max_streams=0)
    with pytest.raises(DferDeployError, match=r"a stream is forgotten after 0\.0 s, expected 0\.1 to 86400"):
        dataclasses.replace(serving, stream_idle_s=0.0)
