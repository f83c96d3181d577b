"""How the client reads an address."""

from __future__ import annotations

import socket

import pytest

from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.errors import ServerUnavailableError, SettingError
from dfer_deploy.triton.address import channel_options, parse_url


@pytest.mark.parametrize(
    ("url", "scheme", "netloc"),
    [
        ("grpc://127.0.0.1:8001", "grpc", "127.0.0.1:8001"),
        ("http://host.example:8000/", "http", "host.example:8000"),
        ("localhost:9001", "grpc", "localhost:9001"),
        ("grpc://[::1]:8001", "grpc", "[::1]:8001"),
    ],
)
def test_addresses(url: str, scheme: str, netloc: str) -> None:
    assert parse_url(url) == (scheme, netloc)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "https://h:1",
        "grpc://",
        "grpc://host",
        "http://h:8000/v2",
        "h:0",
        "h:65536",
        "h:x",
        ":8001",
        "h:²",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(
        SettingError, match="is not understood; expected grpc://HOST:PORT or http://HOST:PORT with the port"
    ):
        parse_url(url)


def test_what_is_no_text() -> None:
    with pytest.raises(SettingError, match="the address is a NoneType, expected a text such as grpc://"):
        parse_url(None)  # type: ignore[arg-type]


def test_only_the_loopback_avoids_the_proxy() -> None:
    for host in ("127.0.0.1", "127.8.9.10", "localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "[::]"):
        assert ("grpc.enable_http_proxy", 0) in channel_options(f"{host}:8001"), host
    for host in ("server.example", "10.0.0.1", "localhost.example", "[2001:db8::1]"):
        assert ("grpc.enable_http_proxy", 0) not in channel_options(f"{host}:8001"), host


def test_a_star_avoids_the_proxy_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert ("grpc.enable_http_proxy", 0) in channel_options("server.example:8001")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_listens(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ServerUnavailableError, match=f"no Triton server answers at {scheme}://127.0.0.1:{port} "):
        TritonPredictor(f"{scheme}://127.0.0.1:{port}")
