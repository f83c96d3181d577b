"""Clients of a real Triton whose network breaks or is silent, or that is full or restarts; only networks are faked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy import AsyncClient, Client
from dfer_deploy.answers.clip_answers import Answer
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.client.retry_policy import RetryPolicy
from dfer_deploy.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    RequestRefusedError,
    ServerUnavailableError,
)
from dfer_deploy.export.configure import configure_bundle
from dfer_deploy.triton.address import parse_url
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer

EXACT = 1e-4


def logits(answer: Answer) -> np.ndarray:
    return np.array(list(answer.logits.values()))


def test_what_the_server_refuses_is_told_at_once(url: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError):
        Client(url, "other", retries=100)
    with Client(url, retries=100) as client, pytest.raises(RequestRefusedError, match="17"):
        client.predict_frames(clips_of(1, frames=17))
    assert time.monotonic() - start < 10


class Proxy:
    """A network between a client and a server that can break: connections are cut, and new ones are cut at once."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._refusals = 0
        self.refused = 0
        self._silent: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def break_for(self, connections: int) -> None:
        self._refusals = connections
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Nothing comes back any more from the connections that there are."""
        self._silent.update(self._open)

    def close(self) -> None:
        self.break_for(10**9)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                if self._refusals:
                    self._refusals -= 1
                    self.refused += 1
                    inner.close()
                    continue
                outer = socket.create_connection(("127.0.0.1", self._target))
                self._open += [inner, outer]
                for source, sink in ((inner, outer), (outer, inner)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                if sink not in self._silent:
                    sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def broken(url: str) -> Iterator[tuple[Proxy, str]]:
    address = parse_url(url)
    proxy = Proxy(int(address.netloc.rpartition(":")[2]))
    yield proxy, f"{address.scheme}://127.0.0.1:{proxy.port}"
    proxy.close()


def test_a_broken_network_is_survived(broken: tuple[Proxy, str], offline, frames, offline_windows) -> None:
    proxy, url = broken
    expected = offline.predict(clips_of(1)).logits[0]
    with Client(url, deadline_s=30, retries=20) as client, client.stream() as stream:
        for frame in frames[:18]:
            stream.push(frame)
        proxy.break_for(2)
        assert np.abs(logits(client.predict(clips_of(1)[0])) - expected).max() < EXACT
        assert proxy.refused == 2
        proxy.break_for(2)
        answer = stream.push(frames[18])
        assert np.abs(logits(answer) - offline_windows[18]).max() < EXACT
        assert not answer.resumed
        assert proxy.refused == 4

    async def asked() -> Answer:
        async with AsyncClient(url, deadline_s=30, retries=20) as client:
            proxy.break_for(2)
            return await client.predict(clips_of(1)[0])

    assert np.abs(logits(asyncio.run(asked())) - expected).max() < EXACT
    assert proxy.refused == 6


def test_a_connection_that_has_gone_silent_is_left_after_one_deadline(broken: tuple[Proxy, str], offline) -> None:
    proxy, url = broken
    clip, expected = clips_of(1)[0], offline.predict(clips_of(1)).logits[0]
    with Client(url, retries=0) as client:
        policy = client._requests._policy
        client.predict(clip)
        proxy.silence()
        client._requests._policy = RetryPolicy(0.3, 0)
        with pytest.raises(DeadlineExceededError):
            client.predict(clip)
        client._requests._policy = replace(policy, deadline_s=20)
        assert np.abs(logits(client.predict(clip)) - expected).max() < EXACT

    async def asked() -> Answer:
        async with AsyncClient(url, retries=0) as client:
            proxy.silence()
            client._requests._policy = RetryPolicy(0.3, 0)
            with pytest.raises(DeadlineExceededError):
                await client.predict(clip)
            client._requests._policy = replace(policy, deadline_s=20)
            return await client.predict(clip)

    assert np.abs(logits(asyncio.run(asked())) - expected).max() < EXACT


def test_without_retries_a_broken_network_is_an_error(broken: tuple[Proxy, str]) -> None:
    proxy, url = broken
    with Client(url, retries=0) as client:
        proxy.break_for(1)
        with pytest.raises(ServerUnavailableError):
            client.predict(clips_of(1)[0])


def test_a_server_that_is_silent_is_given_up_at_the_deadline(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{parse_url(url).scheme}://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError, match=r"0\.5 s") as late:
            Client(address, deadline_s=0.5, retries=100)

        async def asked() -> None:
            async with AsyncClient(address, deadline_s=0.5, retries=100):
                pass

        with pytest.raises(DeadlineExceededError):
            asyncio.run(asked())
        assert late.value.code == "deadline_exceeded"
        assert time.monotonic() - start < 10


def test_a_full_queue_refuses_and_is_waited_for(environment: TritonEnvironment, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "limited"
    shutil.copytree(bundle.path, folder)
    limited, _ = configure_bundle(folder, replace(bundle.manifest.serving, max_batch_size=1, max_queue_size=1))
    clip = clips_of(1)[0]
    with (
        TritonServer(environment, limited.model_repository, exit_timeout_s=0) as server,
        Client(server.endpoints.grpc_url, retries=0) as hasty,
        Client(server.endpoints.grpc_url, retries=1000) as patient,
        concurrent.futures.ThreadPoolExecutor(16) as pool,
    ):
        failures = [request.exception() for request in [pool.submit(hasty.predict, clip) for _ in range(64)]]
        said = [str(failure) for failure in failures if failure]
        assert said and all("is full" in sentence for sentence in said)
        answers = [request.result() for request in [pool.submit(patient.predict, clip) for _ in range(32)]]
        assert {answer.expression for answer in answers} == {answers[0].expression}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exit_timeout_s", "schemes"), [(0, ("grpc", "http")), (10, ("grpc",))], ids=["killed", "asked"]
)
def test_a_stream_survives_the_servers_restart(
    environment: TritonEnvironment,
    bundle: Bundle,
    frames: np.ndarray,
    offline_windows: np.ndarray,
    exit_timeout_s: float,
    schemes: tuple[str, ...],
) -> None:
    """Killed, or asked to stop while frames come: for a while such a server says that it has no models."""
    first = TritonServer(environment, bundle.model_repository, exit_timeout_s=exit_timeout_s)
    first.start()
    ends = first.endpoints
    second = TritonServer(
        environment, bundle.model_repository, exit_timeout_s=0, http_port=ends.http_port, grpc_port=ends.grpc_port
    )

    def restart() -> None:
        first.stop()
        second.start()

    restarting = threading.Thread(target=restart)
    with contextlib.ExitStack() as stack:
        stack.callback(second.stop)
        stack.callback(first.stop)
        clients = [stack.enter_context(Client(ends.grpc_url if name == "grpc" else ends.http_url)) for name in schemes]
        streams = [stack.enter_context(client.stream()) for client in clients]
        for index, frame in enumerate(frames):
            if index == 20:
                restarting.start()
                stack.callback(restarting.join)
            for stream in streams:
                answer = stream.push(frame)
                assert not answer.resumed
                assert np.abs(logits(answer) - offline_windows[index]).max() < EXACT
            if index >= 20:
                time.sleep(0.1)  # as from a camera, so that some come at every stage of the end
