"""The examples without a library, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import clips_of, varied_model

from dfer_deploy import Client
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "clients"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which(str(command[0])) is None or shutil.which("curl") is None:
        pytest.skip(f"{command[0]} or curl is not installed")
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)


@pytest.fixture(params=[3, 16, 21])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"frame {index:02d}.jpg" for index in range(request.param)]
    for path, image in zip(paths, clips_of(1, frames=request.param, seed=3)[0], strict=True):
        # Sizes whose lengths need every byte, and bytes that a shell could take for something else.
        Image.fromarray(np.kron(image, np.ones((6, 9, 1), np.uint8))).save(path)
    return paths


def test_curl(client_server: TritonServer, images: list[Path]) -> None:
    done = run("sh", EXAMPLES / "predict.sh", client_server.endpoints.http_url, *images)
    assert (done.returncode, done.stderr) == (0, "")
    entries = [entry.split(":") for entry in json.loads(done.stdout)["outputs"][0]["data"]]
    with Client(client_server.endpoints.grpc_url) as client:
        answer = client.predict(images)
    assert entries[0][2] == answer.expression
    for probability, _, name in entries:
        assert float(probability) == pytest.approx(answer.probabilities[name], abs=1e-5)


def test_javascript(client_server: TritonServer, images: list[Path]) -> None:
    done = run("node", EXAMPLES / "predict.mjs", client_server.endpoints.http_url, *images)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    with Client(client_server.endpoints.grpc_url) as client:
        answer = client.predict(images)
    assert lines[0][1] == answer.expression
    assert {name: float(value) for value, name in lines} == pytest.approx(dict(answer.probabilities), abs=1e-4)


@pytest.fixture(scope="module")
def varied_server(environment: TritonEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A model whose probabilities depend on the frames."""
    folder = tmp_path_factory.mktemp("varied")
    save_checkpoint(folder / "varied.pt", varied_model(), {})
    bundle, _ = export_to_folder(folder / "varied.pt", folder / "bundle", ExportOptions("embedded"))
    with TritonServer(environment, bundle.model_repository) as running:
        yield running


@pytest.mark.parametrize("command", [("sh", "stream.sh"), ("node", "stream.mjs")], ids=["curl", "javascript"])
def test_streams(varied_server: TritonServer, command: tuple[str, str], tmp_path: Path) -> None:
    paths = [tmp_path / f"frame {index:02d}.jpg" for index in range(20)]
    for path, image in zip(paths, clips_of(2, seed=3).reshape(-1, 32, 32, 3), strict=False):
        Image.fromarray(np.kron(image, np.ones((6, 9, 1), np.uint8))).save(path)
    done = run(command[0], EXAMPLES / command[1], varied_server.endpoints.http_url, *paths)
    assert (done.returncode, done.stderr) == (0, "")
    told = [line.replace(":1:", ":").replace(":0:", ":").replace(":2:", ":") for line in done.stdout.splitlines()]
    with Client(varied_server.endpoints.grpc_url) as client, client.stream() as stream:
        answers = [stream.push(path) for path in paths]
    assert np.ptp([answer.confidence for answer in answers]) > 0.01
    for line, answer in zip(told, answers, strict=True):
        probability, expression = line.replace("  ", ":").split(":")
        assert (float(probability), expression) == (pytest.approx(answer.confidence, abs=1e-4), answer.expression)


def test_a_file_that_is_missing_is_named(client_server: TritonServer, tmp_path: Path) -> None:
    for script in ("predict.sh", "stream.sh"):
        done = run("sh", EXAMPLES / script, client_server.endpoints.http_url, tmp_path / "no.jpg")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"{tmp_path / 'no.jpg'} cannot be read; check the path\n"


@pytest.mark.parametrize(
    "command", [("sh", "predict.sh"), ("node", "predict.mjs"), ("sh", "stream.sh"), ("node", "stream.mjs")], ids=str
)
def test_a_file_that_is_no_image_is_named(
    client_server: TritonServer, command: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    done = run(command[0], EXAMPLES / command[1], client_server.endpoints.http_url, tmp_path / "a.jpg")
    assert done.returncode != 0
    assert "images[0, 0]" in done.stdout + done.stderr


class TurningEncoders(BaseHTTPRequestHandler):
    """A server whose encoder changes with the requests, and which says whose features it got.

    A frame's features are two numbers: its encoder's id and 0.
    """

    order: tuple[int, ...] = ()
    asked = 0

    def do_GET(self) -> None:
        self._send({"inputs": [{"name": "recent_features", "datatype": "FP32", "shape": [-1, 15, 2]}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        size = int(self.headers["Inference-Header-Content-Length"])
        (count,) = json.loads(body[:size])["inputs"][2]["data"]
        features = np.frombuffer(body[-15 * 2 * 4 :], np.float32).reshape(15, 2)
        encoder = type(self).order[min(type(self).asked, len(type(self).order) - 1)]
        type(self).asked += 1
        mixed = bool((features[:count, 0] != encoder).any())
        probabilities = {"name": "probabilities", "datatype": "BYTES", "shape": [1, 1]}
        encoder_id = {"name": "encoder_id", "datatype": "INT32", "shape": [1, 1], "data": [encoder]}
        frame = {"name": "frame_features", "datatype": "FP32", "shape": [1, 1, 2]}
        said = probabilities | {"data": [f"0.5:0:{'mixed' if mixed else 'right'} {encoder} {count}"]}
        if b'"binary_data": true' in body[:size]:
            binary = np.float32([encoder, 0]).tobytes()
            self._send({"outputs": [said, encoder_id, frame | {"parameters": {"binary_data_size": 8}}]}, binary)
        else:
            self._send({"outputs": [said, encoder_id, frame | {"data": [encoder, 0]}]})

    def _send(self, content: dict[str, Any], binary: bytes = b"") -> None:
        text = json.dumps(content, separators=(",", ":")).encode()
        self.send_response(200)
        self.send_header("Inference-Header-Content-Length", str(len(text)))
        self.send_header("Content-Length", str(len(text) + len(binary)))
        self.end_headers()
        self.wfile.write(text + binary)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("command", [("sh", "stream.sh"), ("node", "stream.mjs")], ids=["curl", "javascript"])
@pytest.mark.parametrize("order", [(1,), (1, 1, 1, 2), (1, 2, 1, 2, 1, 2, 1, 2, 1, 2), (3, 3, 1, 2, 2)], ids=str)
def test_streams_never_mix_the_features_of_two_encoders(
    command: tuple[str, str], order: tuple[int, ...], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{index}.jpg" for index in range(6)]
    for path in paths:
        path.write_bytes(b"an image")
    handler = type("Handler", (TurningEncoders,), {"order": order, "asked": 0})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run(command[0], EXAMPLES / command[1], f"http://127.0.0.1:{server.server_port}", *paths)
        server.shutdown()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert not any("mixed" in line for line in lines), lines
    if order == (1,):
        assert [line.split()[-1] for line in lines] == ["0", "1", "2", "3", "4", "5"]


def test_pushes_that_nobody_waits_for_are_sent_one_after_the_other() -> None:
    handler = type("Handler", (TurningEncoders,), {"order": (1,), "asked": 0})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = (
            f"import {{ Stream }} from {json.dumps((EXAMPLES / 'stream.mjs').as_uri())};"
            f"const stream = new Stream('http://127.0.0.1:{server.server_port}');"
            "const images = Array.from({ length: 5 }, () => new Uint8Array([1]));"
            "const answers = await Promise.all(images.map((image) => stream.push(image)));"
            "console.log(answers.map((answer) => answer.expression).join());"
        )
        done = run("node", "--input-type=module", "-e", code)
        server.shutdown()
    assert (done.stdout, done.stderr) == (",".join(f"right 1 {count}" for count in range(5)) + "\n", "")


class BadGateway(BaseHTTPRequestHandler):
    """A proxy whose server is away; it speaks HTML."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        pass


def test_what_a_proxy_answers_is_told_by_its_status(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"an image")
    with HTTPServer(("127.0.0.1", 0), BadGateway) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        done = run("node", EXAMPLES / "predict.mjs", f"http://127.0.0.1:{proxy.server_port}", tmp_path / "a.jpg")
        proxy.shutdown()
    assert (done.returncode, done.stderr) == (1, "Error: HTTP status 502\n")
