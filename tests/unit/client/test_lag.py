"""Where a client's deadline passes, gRPC does not end the request on the server: Triton 2.51 may crash by that."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dfer_deploy.client.calls import Infer, Send, Steps
from dfer_deploy.client.connection import AsyncConnection, Connection
from dfer_deploy.errors import DeadlineExceededError
from dfer_deploy.triton.address import parse_url

DEADLINE_S, WORK_S = 0.2, 0.6


class Slow(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers later than the client waits, and notes whether the request is still alive then."""

    def __init__(self) -> None:
        self.alive: list[bool] = []
        self.done = threading.Event()

    def ModelInfer(  # noqa: N802 - the name of the method in the protocol
        self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        time.sleep(WORK_S)
        self.alive.append(context.is_active())
        self.done.set()
        return service_pb2.ModelInferResponse(model_name=request.model_name)


@pytest.fixture
def slow() -> Iterator[tuple[Slow, str]]:
    server, servicer = grpc.server(ThreadPoolExecutor(2)), Slow()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"grpc://127.0.0.1:{port}"
    server.stop(None)


def asked() -> Steps[None]:
    yield Send(Infer("dfer", {"frames": np.zeros((1, 1), np.uint8)}, ()), DEADLINE_S, DEADLINE_S)


def test_a_blocking_client_stops_waiting_and_the_request_goes_on(slow: tuple[Slow, str]) -> None:
    servicer, url = slow
    connection = Connection(parse_url(url))
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        connection.run(asked())
    assert time.monotonic() - start < WORK_S
    assert servicer.done.wait(10)
    assert servicer.alive == [True]
    connection.close()


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_asynchronous_client_does_so_too_also_when_it_is_cancelled(slow: tuple[Slow, str], cancelled: bool) -> None:
    servicer, url = slow

    async def ask() -> None:
        connection = AsyncConnection(parse_url(url))
        task = asyncio.ensure_future(connection.run(asked()))
        if cancelled:
            await asyncio.sleep(DEADLINE_S / 2)
            task.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else DeadlineExceededError):
            await task
        await asyncio.to_thread(servicer.done.wait, 10)
        await connection.close()

    asyncio.run(ask())
    assert servicer.alive == [True]
