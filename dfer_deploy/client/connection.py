"""Connections that perform calls over gRPC or HTTP, blocking or on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from dfer_deploy.client.calls import Backoff, Send, Steps
from dfer_deploy.client.failures import Failures
from dfer_deploy.errors import CallError, DeadlineExceededError, RequestRefusedError
from dfer_deploy.triton.address import Address, channel_options

T = TypeVar("T")

_MAX_TIMEOUT_S = 86_400.0
"""The HTTP library's own timeout, in seconds. It is as long as the longest deadline, which ends a request first."""

_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
"""gRPC channel options. By default gRPC waits up to two minutes before it tries to reach a restarted server again, and
a new channel reuses the connection of an old one."""


class Connection:
    """A blocking connection, which several threads may share.

    HTTP requests run on one event loop that all connections of the process share. The library's blocking client belongs
    to one thread, and leaves an event loop and its open files behind in every thread that has used it.
    """

    def __init__(self, address: Address) -> None:
        self._is_grpc = address.scheme == "grpc"
        self._failures = Failures(address)
        self._is_closed = False
        self._process = os.getpid()
        if self._is_grpc:
            from tritonclient import grpc as library

            self._library: Any = library
            self._opened = functools.partial(
                library.InferenceServerClient, address.netloc, channel_args=_channel_options(address)
            )
            self._channel = self._opened()
        else:
            self._loop = _loop()
            self._http = _on_loop(self._loop, _opened(address))
            self._abandoned = weakref.finalize(self, _close_later, self._process, self._loop, self._http)

    def run(self, steps: Steps[T]) -> T:
        """Perform every step of ``steps`` and return their result.

        Raises:
            DferDeployError: what the steps raise.
        """
        try:
            step = next(steps)
            while True:
                if isinstance(step, Backoff):
                    time.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = self._perform(step)
                except CallError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    def close(self) -> None:
        """Close the connection. May be called more than once. In a forked process, the parent's stays open."""
        self._is_closed = True
        if self._process != os.getpid():
            return
        if self._is_grpc:
            self._channel.close()
        elif self._abandoned.detach():
            _on_loop(self._loop, self._http.close())

    def _perform(self, request: Send) -> Any:
        if self._is_closed:
            raise RequestRefusedError("the client is closed; open another one")
        if self._process != os.getpid():  # the threads that would answer are the parent's
            raise RequestRefusedError("the client was opened before this process was forked; open another one in it")
        if not self._is_grpc:
            return _on_loop(self._loop, self._http.perform(request))
        call, timeout_s, channel = request.call, request.timeout_s, self._channel
        method, arguments = call.request(self._library, "grpc", timeout_s)
        try:
            with self._failures.translated(call.model, request.deadline_s):
                if method != "infer":
                    return call.response(getattr(channel, method)(**arguments))
                return call.response(_inferred(channel, arguments, timeout_s))
        except CallError as error:
            # A connection on which nothing comes back would be kept by gRPC for many minutes. (Pings would detect it
            # late: Triton ends connections that ping more often than every five minutes.) Requests that still wait on
            # the old channel keep a reference to it; it closes with the last one.
            if isinstance(error, DeadlineExceededError) and channel is self._channel and not self._is_closed:
                self._channel = self._opened()
            raise


def _inferred(channel: Any, arguments: dict[str, Any], timeout_s: float) -> Any:
    """Wait for an inference over gRPC, at most ``timeout_s``, without ending it on the server (``GRPC_LAG_S``).

    Raises:
        TimeoutError: there is no answer in time. The request keeps the channel until it ends.
        Exception: what the library reports.
    """
    future: Future[Any] = Future()

    def done(result: Any, error: Any, kept: Any = channel) -> None:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    channel.async_infer(callback=done, **arguments)
    try:
        return future.result(timeout_s)
    except FutureTimeoutError as error:  # before Python 3.11, a class of its own
        raise TimeoutError from error


class AsyncConnection:
    """A connection for an event loop, on which it must be created."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._failures = Failures(address)
        self._library: Any
        if address.scheme == "grpc":
            from tritonclient.grpc import aio as library

            options: dict[str, Any] = {"channel_args": _channel_options(address)}
        else:
            from tritonclient.http import aio as library

            options = {"conn_timeout": _MAX_TIMEOUT_S}
        self._library = library
        self._opened = functools.partial(library.InferenceServerClient, address.netloc, **options)
        self._client: Any = self._opened()

    async def run(self, steps: Steps[T]) -> T:
        """Perform every step of ``steps`` and return their result.

        Raises:
            DferDeployError: what the steps raise.
        """
        try:
            step = next(steps)
            while True:
                if isinstance(step, Backoff):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = await self.perform(step)
                except CallError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    async def close(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await self._client.close()

    async def perform(self, request: Send) -> Any:
        """Send a request once and return the response.

        Raises:
            CallError: the server is unreachable, refuses the request, or does not answer in time.
        """
        call, timeout_s, client = request.call, request.timeout_s, self._client
        method, arguments = call.request(self._library, self._address.scheme, timeout_s)
        try:
            with self._failures.translated(call.model, request.deadline_s):
                work = getattr(client, method)(**arguments)
                if self._address.scheme == "grpc":
                    # Not cancelled, neither here nor with the caller, so that it does not end on the server.
                    work = asyncio.shield(_kept(work))
                return call.response(await asyncio.wait_for(work, timeout_s))
        except CallError as error:
            # As in Connection. The HTTP library drops such a connection itself.
            if isinstance(error, DeadlineExceededError) and client is self._client and self._address.scheme == "grpc":
                self._client = self._opened()
            raise


_abandoned: set[asyncio.Task[Any]] = set()
"""Requests whose callers may have stopped waiting; event loops keep weak references only."""


def _kept(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work that goes on if nobody waits for it."""
    task = asyncio.ensure_future(work)
    _abandoned.add(task)
    task.add_done_callback(_forgotten)
    return task


def _forgotten(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # otherwise asyncio reports an exception that nobody has seen


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The process's event loop for HTTP, which runs in a daemon thread until the process ends."""
    with _starting:  # the cache alone does not stop two threads from starting a loop each
        return _started_loop()


@functools.cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="dfer_deploy HTTP", daemon=True).start()
    return loop


def _after_fork() -> None:
    """A forked child has neither the thread of the event loop nor one that would release the lock."""
    global _starting
    _starting = threading.Lock()
    _started_loop.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _on_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # the wait was interrupted
        raise


async def _opened(address: Address) -> AsyncConnection:
    return AsyncConnection(address)


def _close_later(process: int, loop: asyncio.AbstractEventLoop, connection: AsyncConnection) -> None:
    if process == os.getpid():  # a forked process would close the parent's connection
        asyncio.run_coroutine_threadsafe(connection.close(), loop)


def _channel_options(address: Address) -> list[tuple[str, int]]:
    return [*channel_options(address.netloc), *_RECONNECT]
