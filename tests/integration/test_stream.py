"""``dfer-deploy stream`` in process and through a real server that is killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.timed import timed_frames
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 frames at 20 a second, 32 × 32."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width = stream.height = 32
        for image in np.concatenate(clips_of(4)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def expected(video: Path, bundle: Bundle) -> np.ndarray:
    """The offline logits of the window that ends with each frame."""
    frames = np.stack([frame.image for frame in timed_frames(video, 0.05)])
    windows = []
    for end in range(1, len(frames) + 1):
        window = frames[max(0, end - 16) : end]
        windows.append(np.concatenate([window, np.repeat(window[-1:], 16 - len(window), 0)]))
    with OnnxRuntimePredictor.from_bundle(bundle) as predictor:
        return predictor.predict(np.stack(windows)).logits


def answers_in(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *lines, last = [json.loads(line) for line in path.read_text().splitlines()]
    return lines, last["summary"]


def differences(lines: list[dict[str, Any]], expected: np.ndarray) -> np.ndarray:
    return np.abs(np.array([list(line["logits"].values()) for line in lines]) - expected).max(1)


def test_in_process(cli: Any, video: Path, bundle: Bundle, expected: np.ndarray, tmp_path: Path) -> None:
    options = ("--faces", "none", "--frame-interval-s", 0.05, "--fast", "--json", tmp_path / "a.jsonl")
    result = cli("stream", video, "--bundle", bundle.path, *options)
    assert result.exit_code == 0, result.output
    lines, summary = answers_in(tmp_path / "a.jsonl")
    assert len(lines) == 64
    assert differences(lines, expected).max() < 1e-4
    assert [line["frames"] for line in lines] == [*range(1, 17), *[16] * 48]
    assert (summary["answers"], summary["dropped"]) == (64, 0)
    assert "whole picture" in result.output
    assert "64 frames in" in result.output


@pytest.mark.slow
def test_through_a_server_that_is_killed_and_started_again(
    video: Path, bundle: Bundle, environment: TritonEnvironment, expected: np.ndarray, tmp_path: Path
) -> None:
    first = TritonServer(environment, bundle.model_repository, exit_timeout_s=0)
    first.start()
    second = TritonServer(environment, bundle.model_repository, exit_timeout_s=0, grpc_port=first.endpoints.grpc_port)
    output = tmp_path / "a.jsonl"
    command = ["stream", video, "--url", first.endpoints.grpc_url, "--faces", "none", "--frame-interval-s", 0.05]
    script = [sys.executable, "-m", "dfer_deploy", *command, "--fast", "--json", output]

    def restart() -> None:
        while not output.exists() or output.read_text().count("\n") < 20:
            time.sleep(0.001)
        first.stop()
        second.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        done = subprocess.run([str(word) for word in script], capture_output=True, text=True, timeout=120)
    finally:
        thread.join()
        first.stop()
        second.stop()
    assert done.returncode == 0, done.stderr
    lines, summary = answers_in(output)
    assert differences(lines, expected).max() < 1e-4
    assert len(lines) == 64
    assert summary["resumed"] == sum(line["resumed"] for line in lines) == 0


def test_an_interruption_ends_with_the_summary(video: Path, bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    command = ["stream", video, "--bundle", bundle.path, "--faces", "none", "--json", output]
    script = [str(word) for word in (sys.executable, "-m", "dfer_deploy", *command)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not output.exists() or output.read_text().count("\n") < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    lines, summary = answers_in(output)
    assert 2 <= len(lines) == summary["answers"] < 32  # of 3.2 s, ten a second
    assert "whole picture" in printed


def test_the_source_is_not_overwritten(cli: Any, video: Path, bundle: Bundle, tmp_path: Path) -> None:
    content = video.read_bytes()
    (tmp_path / "link").symlink_to(video)
    for output in (video, tmp_path / "link"):
        result = cli("stream", video, "--bundle", bundle.path, "--faces", "none", "--json", output)
        assert result.exit_code == 2
        assert output.name in result.output.replace("\n", "")
    assert video.read_bytes() == content


def test_a_source_that_cannot_be_read_empties_no_file(cli: Any, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    keep = tmp_path / "keep.jsonl"
    keep.write_text("kept")
    for options in ((), ("--fast",)):
        arguments = ("--bundle", bundle.path, "--faces", "none", "--json", keep, *options)
        result = cli("stream", tmp_path / "bad.mp4", *arguments)
        assert result.exit_code == 2
        assert keep.read_text() == "kept"


def test_whoever_reads_may_have_enough(video: Path, bundle: Bundle) -> None:
    command = ["stream", video, "--bundle", bundle.path, "--faces", "none", "--fast", "--json", "/dev/stdout"]
    script = [str(word) for word in (sys.executable, "-m", "dfer_deploy", *command)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["frames"] == 1
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors == ""


def test_whoever_reads_the_answers_may_have_enough_too(video: Path, bundle: Bundle, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = ["stream", video, "--bundle", bundle.path, "--faces", "none", "--fast", "--json", fifo]
    script = [str(word) for word in (sys.executable, "-m", "dfer_deploy", *command)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with fifo.open(encoding="utf-8") as reader:
            assert json.loads(reader.readline())["frames"] == 1
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 141
    assert "whole picture" in printed
    assert errors == ""


def test_nobody_reads_the_summary(video: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = ["stream", video, "--bundle", bundle.path, "--faces", "none", "--fast"]
    script = [str(word) for word in (sys.executable, "-m", "dfer_deploy", *command)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x.mp4",), "give either --bundle BUNDLE or --url URL"),
        (("x.mp4", "--url", "h:1", "--runtime", "tensorrt"), "choose one"),
        (("/no/x.mp4", "--bundle", "BUNDLE", "--faces", "none"), "/no/x.mp4 does not exist"),
        (("VIDEO", "--bundle", "BUNDLE", "--faces", "none", "--frame-interval-s", "0"), "0.01<=x<=60"),
        (("VIDEO", "--bundle", "BUNDLE", "--faces", "none", "--margin", "-0.6"), "0.0<=x<=2.0"),
        (("VIDEO", "--bundle", "BUNDLE", "--faces", "none", "--margin", "nan"), "expected 0 to 2"),
        (("VIDEO", "--bundle", "BUNDLE", "--faces", "none", "--frame-interval-s", "nan"), "expected 0.01 to 60"),
        (("VIDEO", "--url", "h:1", "--faces", "none", "--timeout-s", "nan"), "the deadline is nan s, expected"),
        (("VIDEO", "--bundle", "BUNDLE", "--faces", "none", "--json", "/no/folder/a"), "cannot write /no/folder/a"),
        (
            ("VIDEO", "--bundle", "BUNDLE", "--faces", "none", "--fast", "--json", "/dev/full"),
            "cannot write /dev/full (No",
        ),
        (("VIDEO", "--url", "127.0.0.1:1", "--faces", "none"), "no Triton server answers"),
    ],
)
def test_a_users_mistake_is_one_sentence(cli: Any, video: Path, bundle: Bundle, arguments: Any, said: str) -> None:
    named = {"BUNDLE": bundle.path, "VIDEO": video}
    result = cli("stream", *(named.get(word, word) for word in arguments))
    assert result.exit_code == 2
    assert said in result.output
