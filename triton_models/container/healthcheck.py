"""Ask a Triton server for an answer, because its own health check passes even if a model's process hangs or is dead.

    python3 healthcheck.py [HTTP-ADDRESS]

``serve.Dockerfile`` runs this file in the container (HEALTHCHECK). It sends one image to every ensemble for encoded
clips that the server lists, which uses the models of all of its steps. It ends with 0 if all of them answered within
the deadline, else with 1 and the reason. It needs only the standard library.
"""

from __future__ import annotations

import http.client
import json
import struct
import sys
import urllib.error
import urllib.request
import zlib

DEADLINE_S = 8.0
"""Longest wait for each answer, in seconds. One frame through ViT-B/32 takes 0.1 s on two cores, but it may have to
wait behind full batches."""

ADDRESS = "http://127.0.0.1:8000"


def main(address: str = ADDRESS) -> int:
    """Return 0 if the server answers, else 1."""
    try:
        names = [model["name"] for model in json.loads(_answer(f"{address}/v2/repository/index", b"{}"))]
        ensembles = [name for name in names if name.endswith("_encoded")]
        if not ensembles:
            raise ValueError("it lists no ensemble for encoded images")
        for name in ensembles:
            _ask(address, name)
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        print(f"the server at {address} does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def _ask(address: str, ensemble: str) -> None:
    """Send one pixel in the protocol's binary form, and check that logits come back."""
    image = one_pixel()
    content = struct.pack("<I", len(image)) + image
    tensor = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(content)},
    }
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    outputs = json.loads(_answer(f"{address}/v2/models/{ensemble}/infer", head + content, headers))["outputs"]
    if not any(output["name"] == "logits" and output["data"] for output in outputs):
        raise ValueError(f"{ensemble} answered without logits")


def _answer(address: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    # A proxy from the environment could not reach the loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(address, body, headers or {})  # noqa: S310 - the address is the operator's
    try:
        with opener.open(request, timeout=DEADLINE_S) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        raise ValueError(f"{error.code} {error.read(300).decode(errors='replace')}") from error


def one_pixel() -> bytes:
    """Make a PNG file with one black pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\x00" * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
