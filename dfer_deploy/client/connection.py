"""Performs calls, blocking or on an event loop, over gRPC or HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from dfer_deploy.client.address import Address, channel_options
from dfer_deploy.client.calls import Attempt, Flow, Pause
from dfer_deploy.client.failures import CallError, Failures

T = TypeVar("T")

_LONGEST_S = 86_400.0
"""For the libraries' own timeouts over HTTP; every attempt has its limit from outside."""

_GRACE_S = 0.1

_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
"""By default gRPC waits up to two minutes before it looks whether a restarted server is there."""


class Connection:
    """A blocking connection, for use by several threads."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._failures = Failures(address)
        self._library: Any
        if address.scheme == "grpc":
            from tritonclient import grpc as library

            self._channel: Any = library.InferenceServerClient(address.netloc, channel_args=_channel_options(address))
        else:
            from tritonclient import http as library

        self._library = library
        # gevent's sockets belong to the thread that made them.
        self._of_thread = threading.local()
        self._is_closed = False

    def run(self, flow: Flow[T]) -> T:
        """Performs every step of ``flow`` and returns its result.

        Raises:
            DferDeployError: what the flow raises.
        """
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    reply = self._perform(step)
                except CallError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()

    def close(self) -> None:
        """Closes the connection; of HTTP, that of the calling thread (the others end with their threads)."""
        self._is_closed = True
        if self._address.scheme == "grpc":
            self._channel.close()
        else:
            self._drop()

    def _perform(self, attempt: Attempt) -> Any:
        call, timeout_s = attempt.call, attempt.timeout_s
        method, arguments = call.request(self._library, self._address.scheme, timeout_s)
        if self._is_closed:
            raise CallError("the client is closed; open another one", "refused")
        try:
            with self._failures.translated(call.model, timeout_s), self._limited(timeout_s):
                return call.reply(getattr(self._client(), method)(**arguments))
        except BaseException as error:
            # What is left of a broken HTTP exchange would be taken for the next answer.
            if not isinstance(error, CallError) or error.kind in ("unreachable", "late"):
                self._drop()
            raise

    @contextlib.contextmanager
    def _limited(self, timeout_s: float) -> Iterator[None]:
        """gRPC keeps the deadline itself. The timeouts of HTTP sockets are for every single read and write."""
        if self._address.scheme == "grpc":
            yield
            return
        import gevent

        # The library closes its socket after an OSError such as TimeoutError, but takes one while it connects for a
        # reason to try the host's next address.
        last = gevent.Timeout(timeout_s + _GRACE_S)
        try:
            with last, gevent.Timeout(timeout_s, TimeoutError):
                yield
        except gevent.Timeout as passed:
            if passed is not last:
                raise
            raise TimeoutError from passed

    def _client(self) -> Any:
        if self._address.scheme == "grpc":
            return self._channel
        if getattr(self._of_thread, "client", None) is None:
            self._of_thread.client = self._library.InferenceServerClient(
                self._address.netloc, connection_timeout=_LONGEST_S, network_timeout=_LONGEST_S
            )
        return self._of_thread.client

    def _drop(self) -> None:
        client = getattr(self._of_thread, "client", None)
        if client is not None:
            self._of_thread.client = None
            client.close()


class AsyncConnection:
    """The same for an event loop; to be made on it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._failures = Failures(address)
        self._library: Any
        if address.scheme == "grpc":
            from tritonclient.grpc import aio as library

            self._client: Any = library.InferenceServerClient(address.netloc, channel_args=_channel_options(address))
        else:
            from tritonclient.http import aio as library

            self._client = library.InferenceServerClient(address.netloc, conn_timeout=_LONGEST_S)
        self._library = library

    async def run(self, flow: Flow[T]) -> T:
        """Performs every step of ``flow`` and returns its result.

        Raises:
            DferDeployError: what the flow raises.
        """
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    reply = await self._perform(step)
                except CallError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()

    async def close(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await self._client.close()

    async def _perform(self, attempt: Attempt) -> Any:
        call, timeout_s = attempt.call, attempt.timeout_s
        method, arguments = call.request(self._library, self._address.scheme, timeout_s)
        with self._failures.translated(call.model, timeout_s):
            raw = await asyncio.wait_for(getattr(self._client, method)(**arguments), timeout_s)
            return call.reply(raw)


def _channel_options(address: Address) -> list[tuple[str, int]]:
    return [*channel_options(address.netloc), *_RECONNECT]
