"""A bundle in this process has the methods of the client, and gives the answers of its graphs."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import clips_of, write_frames
from videos import numbered, write_timed_video

from dfer_deploy import Client, load_bundle
from dfer_deploy.api.load_bundle import LoadedBundle, LoadedStream
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.client import Stream
from dfer_deploy.errors import ClipError, SettingError


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[LoadedBundle]:
    with load_bundle(str(bundle.path)) as loaded:
        yield loaded


@pytest.mark.parametrize(("local", "served"), [(LoadedBundle, Client), (LoadedStream, Stream)], ids=["model", "stream"])
def test_the_methods_are_those_of_the_client(local: type, served: type) -> None:
    """What concerns a connection is the client's alone."""
    of_server = {"address", "run", "graphs_sha256", "max_batch_size"}
    missing = {name for name in dir(served) if not name.startswith("_")} - {*dir(local), *of_server}
    assert missing == set()
    for name in ("predict", "predict_video", "stream", "push"):
        if hasattr(served, name):
            parameters = [list(inspect.signature(getattr(c, name)).parameters) for c in (local, served)]
            assert parameters[0] == parameters[1], name


def test_clips_batches_and_images_are_answered(model: LoadedBundle, tmp_path: Path) -> None:
    clips = clips_of(2, model.image_size, frames=3)
    batch = model.predict(clips)
    alone = model.predict(clips[0])
    assert batch[0].expression == alone.expression
    assert dict(batch[0].logits) == pytest.approx(dict(alone.logits), abs=1e-4)
    write_frames(tmp_path / "frames", clips[0])
    paths = sorted((tmp_path / "frames").iterdir())
    of_images = model.predict([paths[0], str(paths[1]), paths[2].read_bytes()])
    assert of_images.to_dict() == alone.to_dict()
    assert list(alone.to_pandas().columns) == ["expression", "confidence", *model.labels]


def test_a_stream_takes_frames_and_images(model: LoadedBundle) -> None:
    clip = clips_of(1, model.image_size, frames=3)[0]
    with model.stream() as stream, model.stream() as of_images:
        for count, frame in enumerate(clip, 1):
            file = io.BytesIO()
            Image.fromarray(frame).save(file, format="PNG")
            answer = stream.push(frame)
            assert answer.frames == count
            assert of_images.push(file.getvalue()) == answer
    with pytest.raises(SettingError, match="closed"):
        stream.push(clip[0])


def test_windows_are_an_iterator_and_a_table(model: LoadedBundle, tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(40), range(0, 4000, 100))
    windows = list(model.predict_video(video, interval_s=0.1, faces="none"))
    table = model.predict_video(str(video), interval_s=0.1, faces="none").to_pandas()
    assert len(table) == len(windows) > 1
    assert table["expression"].tolist() == [window.expression for window in windows]
    np.testing.assert_allclose(table[model.labels[0]], [window.probabilities[0] for window in windows])
    assert list(table.columns)[:4] == ["track", "start_s", "end_s", "frames"]


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((4, 8, 8, 3), np.uint8),
        np.zeros((4, 32, 32, 3), np.float32),
        np.zeros((0, 32, 32, 3), np.uint8),
        "face.png",
        [b"no image"],
        [3],
        3,
    ],
    ids=["size", "dtype", "empty", "a path", "damaged", "number", "no list"],
)
def test_what_is_not_a_clip_is_refused(model: LoadedBundle, clip: object) -> None:
    with pytest.raises(ClipError):
        model.predict(clip)  # type: ignore[call-overload]


def test_a_closed_bundle_is_closed_again_and_answers_nothing(bundle: Bundle) -> None:
    model = load_bundle(bundle)
    model.close()
    model.close()
    for ask in (lambda: model.predict(clips_of(1)), lambda: model.encode(clips_of(1)), model.stream):
        with pytest.raises(SettingError):
            ask()


@pytest.mark.parametrize("runtime", ["", "cuda", "bogus"])
def test_a_runtime_that_does_not_exist_is_refused(bundle: Bundle, runtime: str) -> None:
    with pytest.raises(SettingError):
        load_bundle(bundle, runtime=runtime)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((1, 0, 64), np.float32),
        np.zeros((1, 17, 64), np.float32),
        np.zeros((1, 4, 63), np.float32),
        np.zeros((4, 64), np.float32),
        np.zeros((1, 4, 64), np.float64),
        "features",
    ],
)
def test_features_that_the_head_does_not_take_are_refused(model: LoadedBundle, features: object) -> None:
    with pytest.raises(ClipError):
        model.classify(features)  # type: ignore[arg-type]
    with pytest.raises(ClipError):
        model.encode(features)  # type: ignore[arg-type]


@pytest.mark.parametrize("interval_s", [0, -1.0, float("nan")])
def test_an_interval_that_cannot_be_is_refused_at_once(model: LoadedBundle, interval_s: float) -> None:
    with pytest.raises(SettingError):
        model.predict_video("a.mp4", interval_s=interval_s, faces="none")
