"""Encoded images, sent to a real Triton."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from encoded_images import encoded, picture, readable_images, refused_images
from tritonclient import grpc as grpc_client
from tritonclient import http as http_client
from tritonclient.utils import InferenceServerException

from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.reading import image_from_file, resized
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer

SIZE = 32
READABLE = readable_images()
GOOD = READABLE["JPEG"]


@pytest.fixture(scope="module")
def server(environment: TritonEnvironment, bundle: Path) -> Iterator[TritonServer]:
    with TritonServer(environment, bundle / "model_repository") as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def infer(request, server: TritonServer):
    """Asks ``dfer_encoded`` with images [B, T], for its probabilities and logits."""
    library = grpc_client if request.param == "grpc" else http_client
    url = server.endpoints.grpc_url if request.param == "grpc" else server.endpoints.http_url
    with library.InferenceServerClient(url.partition("://")[2]) as client:

        def ask(images: list[list[bytes]], model: str = "dfer_encoded"):
            tensor = library.InferInput("images", [len(images), len(images[0])], "BYTES")
            array = np.empty((len(images), len(images[0])), object)
            for index, clip in enumerate(images):
                array[index] = clip
            tensor.set_data_from_numpy(array)
            return client.infer(model, [tensor])

        yield ask


def posted(server: TritonServer, body: bytes, headers: dict[str, str]) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(server.endpoints.http_url.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/dfer_encoded/infer", body, headers)
        response = connection.getresponse()
        return response.status, json.load(response)


def frames_of(images: list[list[bytes]], folder: Path) -> np.ndarray:
    """What a client with dfer_deploy makes of these bytes in files."""
    path = folder / "image"
    clips = []
    for clip in images:
        frames = []
        for image in clip:
            path.write_bytes(image)
            frames.append(resized(image_from_file(path), SIZE))
        clips.append(frames)
    return np.array(clips)


def test_every_image_becomes_the_clients_frame(infer, tmp_path: Path) -> None:
    """The server's Pillow is another installation, and may be another version."""
    images = list(READABLE.values())
    clips = [images[start : start + 16] for start in (0, len(images) - 16)]
    frames = infer(clips, "dfer_preprocess").as_numpy("frames")
    expected = frames_of(clips, tmp_path)
    assert frames.dtype == expected.dtype
    assert frames.shape == expected.shape
    different = [
        name for name, one, other in zip(READABLE, frames[0], expected[0], strict=False) if (one != other).any()
    ]
    assert different == []
    assert (frames == expected).all()


@pytest.mark.parametrize(("batch", "time_steps"), [(1, 16), (3, 9), (4, 1)])
def test_the_answer_is_the_one_for_the_clients_frames(
    infer, server: TritonServer, tmp_path: Path, batch: int, time_steps: int
) -> None:
    images = [[encoded(picture(40 + time, 50, seed=time + 16 * clip), "PNG") for time in range(time_steps)]
              for clip in range(batch)]  # fmt: skip
    answer = infer(images)
    with TritonPredictor(server.endpoints.grpc_url) as predictor:
        expected = predictor.predict(frames_of(images, tmp_path))
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected.logits)
    np.testing.assert_array_equal(answer.as_numpy("probabilities"), expected.probabilities)


def test_hostile_images_next_to_good_ones(infer, request) -> None:
    """All at the same time, so that the server batches them."""
    expected = infer([[GOOD] * 3]).as_numpy("logits")
    refused = list(refused_images().items())

    def ask(index: int) -> str:
        if index % 2:
            answer = infer([[GOOD] * 3]).as_numpy("logits")
            return "" if (answer == expected).all() else "another answer than alone"
        name, (image, said) = refused[index // 2]
        try:
            infer([[GOOD, image, GOOD]])
        except InferenceServerException as error:
            message = str(error.message())
            told = "images[0, 1]" in message and said in message
            return "" if told and error.status() in ("StatusCode.INVALID_ARGUMENT", "400") else f"{name}: {error}"
        return f"{name} was answered"

    # The HTTP client is for one thread only.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        everywhere = pool.map if request.node.callspec.params["infer"] == "grpc" else map
        problems = [problem for problem in everywhere(ask, range(2 * len(refused))) if problem]
    assert problems == []
    assert (infer([[GOOD] * 3]).as_numpy("logits") == expected).all()


def test_too_many_images_and_none(infer) -> None:
    for images, said in (([[GOOD] * 17], "'images' has 17 images a clip"), ([[]], "'images' has 0 images a clip")):
        with pytest.raises(InferenceServerException, match=said):
            infer(images)
    with pytest.raises(InferenceServerException, match=r"must be <= 4|exceed"):
        infer([[GOOD]] * 5)


def test_the_classification_extension_answers_with_names(server: TritonServer, tiny_model) -> None:
    with grpc_client.InferenceServerClient(server.endpoints.grpc_url[7:]) as client:
        tensor = grpc_client.InferInput("images", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.full((1, 1), GOOD, object))
        wanted = [grpc_client.InferRequestedOutput("probabilities", class_count=7)]
        (ranking,) = client.infer("dfer_encoded", [tensor], outputs=wanted).as_numpy("probabilities")
    assert {entry.decode().split(":", 2)[2] for entry in ranking} == set(tiny_model.spec.prompts.class_names)


def test_plain_http_with_nothing_but_the_standard_library(server: TritonServer, infer) -> None:
    """The binary-data extension: JSON, then every image after its length in four bytes, little end first."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in [GOOD] * 2)
    header = json.dumps({
        "inputs": [{"name": "images", "datatype": "BYTES", "shape": [1, 2],
                    "parameters": {"binary_data_size": len(data)}}]
    }).encode()  # fmt: skip
    status, answer = posted(server, header + data, {"Inference-Header-Content-Length": str(len(header))})
    assert status == 200
    logits = next(output["data"] for output in answer["outputs"] if output["name"] == "logits")
    expected = infer([[GOOD] * 2])
    np.testing.assert_allclose([logits], expected.as_numpy("logits"), rtol=1e-6)


def test_images_in_json_are_refused(server: TritonServer) -> None:
    """JSON has strings of characters only, and this server does not decode base64."""
    body = {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1, 1],
                        "data": [[base64.b64encode(GOOD).decode()]]}]}  # fmt: skip
    status, answer = posted(server, json.dumps(body).encode(), {})
    assert status == 400
    assert "images[0, 0] cannot be read as an image" in answer["error"]


def test_perf_analyzer_with_images_of_its_own(
    environment: TritonEnvironment, server: TritonServer, tmp_path: Path
) -> None:
    content = struct.pack("<I", len(GOOD)) + GOOD
    data = {"data": [{"images": {"content": {"b64": base64.b64encode(content * 16).decode()}, "shape": [16]}}]}
    (tmp_path / "images.json").write_text(json.dumps(data))
    done = subprocess.run(
        [
            environment.perf_analyzer, "-m", "dfer_encoded", "-i", "grpc", "-u", server.endpoints.grpc_url[7:],
            "--input-data", tmp_path / "images.json", "--shape", "images:16", "--concurrency-range", "2",
            "--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "1000000", "-r", "3",
        ],
        env=environment.process_environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "Throughput:" in done.stdout, done.stdout + done.stderr
    assert "Failed" not in done.stdout


def test_a_server_without_pillow_serves_everything_else(
    environment: TritonEnvironment, bundle: Path, tmp_path: Path, tiny_model, capsys: pytest.CaptureFixture[str]
) -> None:
    """NVIDIA's images have none, unless the Dockerfile of the bundle put it there."""
    repository = Path(shutil.copytree(bundle / "model_repository", tmp_path / "models"))
    source = repository / "dfer_preprocess" / "1" / "model.py"
    lacking = source.read_text().replace("    import PIL.Image\n", "    raise ModuleNotFoundError(name='PIL')\n")
    source.write_text(lacking)
    with TritonServer(environment, repository, exit_timeout_s=0) as running:
        told = " ".join(capsys.readouterr().err.split())
        assert told.startswith("warning: the model 'dfer_encoded' is not served: in ensemble")
        assert "this server decodes no images, because its Python has no Pillow" in told
        frames = np.zeros((1, 3, SIZE, SIZE, 3), np.uint8)
        with TritonPredictor(running.endpoints.grpc_url) as predictor:
            assert np.abs(predictor.predict(frames).logits - tiny_model.predict(frames).logits).max() < 1e-4
