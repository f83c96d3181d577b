"""Deadlines over HTTP. The server is a socket, so that it can be as slow as no Triton is on purpose."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.client.calls import Call, ReadConfig, Send, Steps
from dfer_deploy.client.connection import Connection
from dfer_deploy.client.retry_policy import RetryPolicy
from dfer_deploy.errors import CallError, DeadlineExceededError
from dfer_deploy.triton.address import parse_url

FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class SlowServer:
    """Answers every request with an empty configuration."""

    def __init__(self) -> None:
        self.delay_s = self.byte_s = 0.0
        self.accepted = 0
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        body = json.dumps({"config": {}}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        with contextlib.suppress(OSError), connection:
            while True:
                request = b""
                while b"\r\n\r\n" not in request:
                    if not (piece := connection.recv(1 << 16)):
                        self.ended.set()
                        return
                    request += piece
                time.sleep(self.delay_s)
                if not self.byte_s:
                    connection.sendall(head + body)
                    continue
                for byte in head + body:
                    connection.sendall(bytes([byte]))
                    time.sleep(self.byte_s)


@pytest.fixture
def server() -> Iterator[SlowServer]:
    running = SlowServer()
    yield running
    running.close()


def asked(call: Call, deadline_s: float) -> Steps[Any]:
    return (yield from RetryPolicy(deadline_s, 0).start().response_to(call))


def test_a_connection_outlives_a_question_with_little_time_left(server: SlowServer) -> None:
    connection = Connection(parse_url(server.url))
    connection.run(asked(ReadConfig("m"), 0.3))
    server.delay_s = 0.6
    assert connection.run(asked(ReadConfig("m"), 60)) == {}
    connection.run(asked(ReadConfig("m"), 10))
    assert server.accepted == 1
    connection.close()


def test_a_server_that_drips_is_late(server: SlowServer) -> None:
    connection = Connection(parse_url(server.url))
    server.byte_s = 0.02
    with pytest.raises(DeadlineExceededError):
        connection.run(asked(ReadConfig("m"), 0.2))
    server.byte_s = 0.0
    # What is left of the late answer is not taken for the next one.
    assert connection.run(asked(ReadConfig("m"), 10)) == {}
    assert server.accepted == 2
    connection.close()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_what_is_late_is_told_by_the_deadline_of_the_question(scheme: str, server: SlowServer) -> None:
    """Not by what earlier attempts have left of it."""
    server.delay_s = 1.0
    connection = Connection(parse_url(server.url.replace("http", scheme)))

    def last_attempt() -> Steps[Any]:
        return (yield Send(ReadConfig("m"), 0.1, 7.0))

    with pytest.raises(DeadlineExceededError, match="7 s"):
        connection.run(last_attempt())
    connection.close()


def test_a_server_that_does_not_read_is_late() -> None:
    class Upload(ReadConfig):
        def request(self, library: Any, scheme: Any, timeout_s: float) -> tuple[str, dict[str, Any]]:
            return "infer", {"model_name": "m", "inputs": [self._tensor(library)]}

        def _tensor(self, library: Any) -> Any:
            import numpy as np

            array = np.zeros((1, 64 << 20), np.uint8)
            tensor = library.InferInput("frames", list(array.shape), "UINT8")
            tensor.set_data_from_numpy(array)
            return tensor

    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = Connection(parse_url(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with pytest.raises(DeadlineExceededError):
            connection.run(asked(Upload("m"), 0.3))
        connection.close()


def test_a_host_whose_addresses_are_all_silent_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(self: Any, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr("aiohttp.connector.TCPConnector._wrap_create_connection", silent)
    connection = Connection(parse_url("http://127.0.0.1:9"))
    with pytest.raises(DeadlineExceededError):
        connection.run(asked(ReadConfig("m"), 0.2))
    connection.close()


def test_threads_that_end_leave_nothing_open(server: SlowServer) -> None:
    """A service that asks from a thread for each of its requests ran out of files."""
    connection = Connection(parse_url(server.url))
    connection.run(asked(ReadConfig("m"), 10))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        thread = threading.Thread(target=connection.run, args=(asked(ReadConfig("m"), 10),))
        thread.start()
        thread.join()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert server.accepted == 1
    connection.close()


def test_a_connection_that_is_not_closed_ends_with_its_last_reference(server: SlowServer) -> None:
    connection = Connection(parse_url(server.url))
    connection.run(asked(ReadConfig("m"), 10))
    del connection
    assert server.ended.wait(10)


def in_a_fork(check: Callable[[], bool]) -> bool:
    """What ``check`` returns in a child, which has opened no connection yet; False if it raises."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os._exit(not check())
        os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@FORKS
def test_a_process_that_forked_can_connect_again(server: SlowServer) -> None:
    Connection(parse_url(server.url)).close()
    assert in_a_fork(lambda: Connection(parse_url(server.url)).run(asked(ReadConfig("m"), 10)) == {})


@FORKS
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_connection_from_before_a_fork_is_refused(scheme: str, server: SlowServer) -> None:
    connection = Connection(parse_url(server.url.replace("http", scheme)))
    if scheme == "http":
        connection.run(asked(ReadConfig("m"), 10))

    def refused() -> bool:
        with pytest.raises(CallError, match="opened before this process was forked; open another one"):
            connection.run(asked(ReadConfig("m"), 10))
        connection.close()
        return True

    assert in_a_fork(refused)
    if scheme == "http":  # the parent's is as it was
        assert connection.run(asked(ReadConfig("m"), 10)) == {}
        assert server.accepted == 1
    connection.close()


@FORKS
def test_the_first_connections_of_many_threads_share_a_loop(server: SlowServer) -> None:
    start = threading.Thread.start

    def slow_start(thread: threading.Thread) -> None:
        if thread.name == "dfer_deploy HTTP":
            time.sleep(0.1)
        start(thread)

    def check() -> bool:
        threading.Thread.start = slow_start  # type: ignore[method-assign]
        together = threading.Barrier(6)

        def connected(_: int) -> Connection:
            together.wait()
            return Connection(parse_url(server.url))

        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            connections = list(threads.map(connected, range(6)))
        return all(connection.run(asked(ReadConfig("m"), 5)) == {} for connection in connections)

    assert in_a_fork(check)
