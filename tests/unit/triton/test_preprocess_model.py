"""The model that decodes images in the server, with Triton's module replaced by a few lines."""

from __future__ import annotations

import concurrent.futures
import io
import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import python_backend
from encoded_images import chunk, encoded, picture, png, readable_images, refused_images
from google.protobuf import json_format, text_format
from PIL import Image
from python_backend import Request, Response, TritonError
from tritonclient.grpc import model_config_pb2

from dfer_deploy import triton_models
from dfer_deploy.clips.reading import image_from_file, resized

SIZE = 32
READABLE = readable_images()
REFUSED = refused_images()
GOOD = READABLE["JPEG"]


def written(folder: Path) -> Path:
    """The version's folder with the files as a bundle has them."""
    for name, source in triton_models.preprocess_sources().items():
        (folder / name).write_text(source, encoding="utf-8")
    return folder / "model.py"


def loaded(source: Path, monkeypatch: pytest.MonkeyPatch, **parameters: int):
    python_backend.install(monkeypatch)
    monkeypatch.syspath_prepend(str(source.parent))  # as Triton does it
    for name in ("image_decoding", "model_requests"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    model = runpy.run_path(str(source))["TritonPythonModel"]()
    template = text_format.Parse(triton_models.config_template("preprocess.pbtxt"), model_config_pb2.ModelConfig())
    template.output[0].dims[:] = [-1, SIZE, SIZE, 3]
    for name, value in parameters.items():
        template.parameters[name].string_value = str(value)
    config = json_format.MessageToDict(template, preserving_proto_field_name=True)
    model.initialize({"model_config": json.dumps(config)})
    return model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = loaded(written(tmp_path), monkeypatch)
    yield model
    model.finalize()


def request_of(*clips: list[bytes]) -> Request:
    images = np.empty((len(clips), len(clips[0])), object)
    for index, clip in enumerate(clips):
        images[index] = clip
    return Request({"images": images})


def client_frame(image: bytes, folder: Path) -> np.ndarray:
    """What the client's path makes of the same bytes in a file."""
    path = folder / "image"
    path.write_bytes(image)
    return resized(image_from_file(path), SIZE)


def check(response: Response, *clips: list[bytes], folder: Path) -> None:
    expected = np.stack([[client_frame(image, folder) for image in clip] for clip in clips])
    frames = response.value("frames")
    assert (frames.dtype, frames.shape) == (np.uint8, expected.shape)
    assert (frames == expected).all()


def test_frames_equal_the_clients_to_the_bit(model, tmp_path: Path) -> None:
    images = list(READABLE.values())
    clips = [images[start : start + 16] for start in (0, len(images) - 16)]
    single = request_of([READABLE["WebP lossy"]])
    both, one = model.execute([request_of(*clips), single])
    check(both, *clips, folder=tmp_path)
    check(one, [READABLE["WebP lossy"]], folder=tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_image_is_refused_by_its_index_and_harms_nobody(model, tmp_path: Path, name: str) -> None:
    image, said = REFUSED[name]
    first, bad, last = model.execute([request_of([GOOD] * 2), request_of([GOOD] * 3, [GOOD, image, GOOD]),
                                      request_of([GOOD] * 2)])  # fmt: skip
    for response in (first, last):
        check(response, [GOOD] * 2, folder=tmp_path)
    assert bad.error is not None
    assert str(bad.error).startswith("images[1, 1] ")
    assert said in str(bad.error)
    assert "\n" not in str(bad.error)
    assert " at 0x" not in str(bad.error)  # of Python's objects
    assert len(str(bad.error)) < 250
    assert bad.error.code == TritonError.INVALID_ARG
    assert bad.output_tensors == []


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "the input 'images' is missing"),
        (np.full((1, 17), GOOD, object), "'images' has 17 images a clip, expected 1 to 16"),
        (np.full((1, 0), GOOD, object), "'images' has 0 images a clip, expected 1 to 16"),
        (np.full((0, 3), GOOD, object), "'images' holds no clip"),
        (np.full(3, GOOD, object), "'images' has the shape [3]"),
        (np.zeros((1, 3), np.uint8), "the dtype uint8, expected [B, T] of bytes"),
        (np.array([[GOOD, b""]], object), "images[0, 1] is empty"),
    ],
)
def test_a_request_of_a_wrong_shape(model, tmp_path: Path, images: np.ndarray | None, said: str) -> None:
    request = Request({} if images is None else {"images": images})
    bad, good = model.execute([request, request_of([GOOD])])
    check(good, [GOOD], folder=tmp_path)
    assert said in str(bad.error)
    assert bad.error.code == TritonError.INVALID_ARG


def test_limits_are_those_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(written(tmp_path), monkeypatch, max_image_bytes=3000, max_pixels=61 * 47, max_frames=2)
    small, wide, heavy, many = model.execute([
        request_of([GOOD] * 2),
        request_of([encoded(picture(62, 47), "JPEG")]),
        request_of([encoded(picture(), "PNG")]),
        request_of([GOOD] * 3),
    ])  # fmt: skip
    check(small, [GOOD] * 2, folder=tmp_path)
    assert str(wide.error) == "images[0, 0] has 62 × 47 pixels, expected at most 2867 pixels; make it smaller"
    assert "bytes, expected at most 3000; make it smaller" in str(heavy.error)
    assert "has 3 images a clip, expected 1 to 2" in str(many.error)


def test_scans_that_cost_time_without_being_long(model) -> None:
    image = encoded(picture(), "JPEG", progressive=True)
    scan = image[image.rindex(b"\xff\xda") : -2]  # the last one, which any number may follow
    (response,) = model.execute([request_of([image[:-2] + 200 * scan + image[-2:]])])
    assert "scans, expected at most 100" in str(response.error)


def test_all_images_of_a_request_have_a_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(written(tmp_path), monkeypatch, max_request_pixels=190_000)
    image = encoded(picture(200, 200), "JPEG", progressive=True)
    scan = image[image.rindex(b"\xff\xda") : -2]
    costly = image[:-2] + (48 - image.count(b"\xff\xda")) * scan + image[-2:]  # four times the usual number of scans
    pieces = GOOD[:2] + b"\xff\xfe\0\2" * 2000 + GOOD[2:]  # which hold no pixels, but are read
    clips = [[image] * 4, [image] * 5, [costly], [costly, image], [pieces]]
    for clip, response in zip(clips, model.execute([request_of(clip) for clip in clips]), strict=True):
        if clip in ([image] * 4, [costly]):
            check(response, clip, folder=tmp_path)
        else:
            assert "is beyond what one request may hold, 190000 pixels in all its images" in str(response.error)
            assert "every read of a file counts as 100 more" in str(response.error)
            assert response.error.code == TritonError.INVALID_ARG


def in_small_chunks(image: Image.Image) -> bytes:
    """A PNG as libpng writes it, in chunks of 8 KiB."""
    whole = png(np.asarray(image), colour=2)
    data = whole[41:-16]
    pieces = [chunk(b"IDAT", data[start : start + 8192]) for start in range(0, len(data), 8192)]
    return whole[:33] + b"".join(pieces) + whole[-12:]


def test_a_clip_of_large_photos_is_within_the_limits(model) -> None:
    """16 of 4000 × 3000 pixels, from a telephone."""
    photo = encoded(picture(400, 300).resize((4000, 3000)), "JPEG")
    (response,) = model.execute([request_of([photo] * 16)])
    assert response.value("frames").shape == (1, 16, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("images", "width", "height", "file"),
    [
        (23, 3840, 2160, lambda photo: encoded(photo, "JPEG", quality=95)),
        (256, 800, 800, in_small_chunks),
    ],
)
def test_as_many_images_as_the_documentation_says_are_within_the_limits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    width: int,
    height: int,
    file: Callable[[Image.Image], bytes],
) -> None:
    """Each keeps to its share, with what reading its file costs."""
    limit = loaded(written(tmp_path), monkeypatch)._max_request_pixels
    model = loaded(tmp_path / "model.py", monkeypatch, max_request_pixels=limit // images)
    image = file(picture(width, height))
    check(model.execute([request_of([image])])[0], [image], folder=tmp_path)


@pytest.mark.parametrize(
    "image",
    [
        GOOD[:2] + b"\xff\xfe\0\2" * 200_000 + GOOD[2:],
        GOOD[:2] + b"\xff" * 200_000 + GOOD[2:],
        READABLE["PNG"][:33] + chunk(b"prVt", b"") * 50_000 + READABLE["PNG"][33:],
        READABLE["PNG"][:-12] + chunk(b"prVt", b"") * 50_000 + READABLE["PNG"][-12:],
    ],
    ids=["segments", "filling", "chunks", "chunks at the end"],
)
def test_pieces_that_cost_time_without_holding_pixels(model, image: bytes) -> None:
    (response,) = model.execute([request_of([image])])
    assert str(response.error) == "images[0, 0] is made of far too many pieces; encode it anew"


def test_images_are_decoded_by_a_bounded_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(written(tmp_path), monkeypatch, decode_threads=3)
    decoded, lock, busy, most = model._decoded, threading.Lock(), 0, 0
    three = threading.Barrier(3)

    def counting(image: bytes, work: object) -> np.ndarray:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        three.wait(10)  # two threads would wait for ever
        frame = decoded(image, work)
        with lock:
            busy -= 1
        return frame

    model._decoded = counting
    check(model.execute([request_of([GOOD] * 6)])[0], [GOOD] * 6, folder=tmp_path)
    assert most == 3


def test_the_images_of_several_requests_are_decoded_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(written(tmp_path), monkeypatch, decode_threads=3)
    decoded, three = model._decoded, threading.Barrier(3)

    def waiting(image: bytes, work: object) -> np.ndarray:
        three.wait(10)
        return decoded(image, work)

    model._decoded = waiting
    for response in model.execute([request_of([GOOD]) for _ in range(3)]):
        check(response, [GOOD], folder=tmp_path)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = encoded(picture(60, 60), "PNG"), encoded(picture(20, 20), "PNG")
    heavy = png(np.zeros((20, 20), np.uint8), before=chunk(b"tEXt", b"text\0" + bytes(60_000)))
    model = loaded(written(tmp_path), monkeypatch, decode_threads=4, max_pixels=10_000, max_image_bytes=200_000)
    alone = []
    namespace = model._decoded.__globals__
    upright_rgb = namespace["upright_rgb"]

    def watching(image):
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            free = other.submit(model._one_large_image.acquire, False).result()
            if free:
                other.submit(model._one_large_image.release).result()
        alone.append(not free)
        return upright_rgb(image)

    monkeypatch.setitem(namespace, "upright_rgb", watching)
    for image, expected in ((large, True), (heavy, True), (small, False)):
        alone.clear()
        clip = [image] if image is small else [image] * 4
        check(model.execute([request_of(clip)])[0], clip, folder=tmp_path)
        assert alone == [expected] * len(clip)
    assert model._one_large_image.acquire(blocking=False)


def test_the_first_refused_image_ends_the_work_on_its_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(written(tmp_path), monkeypatch, decode_threads=1)
    decoded, seen = model._decoded, []
    began = threading.Event()

    def slow(image: bytes, work: object) -> np.ndarray:
        began.wait(10)
        seen.append(image)
        return decoded(image, work)

    model._decoded = slow
    begun = model._begun(request_of([b"x"], *([[GOOD]] * 400)))
    began.set()
    assert "images[0, 0]" in str(model._answer(*begun).error)
    assert len(seen) < 401


def test_without_pillow_it_loads_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    model = loaded(written(tmp_path), monkeypatch)
    (response,) = model.execute([request_of([GOOD])])
    assert "its Python has no Pillow" in str(response.error)
    assert response.error.code == TritonError.UNSUPPORTED


def test_what_the_server_runs_needs_nothing_of_this_package(tmp_path: Path) -> None:
    """Also not by way of the module that both sides share."""
    source = written(tmp_path)
    (tmp_path / "triton_python_backend_utils.py").touch()
    probe = (
        f"import sys; sys.path[:0] = [{str(source.parent)!r}]; import model; "
        "assert model._HAS_PILLOW; "
        "print({name.partition('.')[0] for name in sys.modules} & {'dfer_deploy', 'torch', 'av', 'tritonclient'})"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "set()\n"


def test_pictures_of_the_tests_are_what_they_say() -> None:
    assert Image.open(io.BytesIO(READABLE["JPEG CMYK"])).mode == "CMYK"
    assert Image.open(io.BytesIO(READABLE["PNG interlaced"])).info["interlace"] == 1
    assert Image.open(io.BytesIO(READABLE["JPEG of two pictures (MPO)"])).n_frames == 2
