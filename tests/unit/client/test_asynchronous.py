"""What a cancelled ``AsyncClient.predict_video`` leaves behind. The blocking client is scripted: it waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dfer_deploy.client import asynchronous
from dfer_deploy.client.asynchronous import AsyncClient


class Waiting:
    """A client that waits where it is told to, and says that it was closed."""

    def __init__(self, where: str) -> None:
        self.where, self.reached, self.go_on, self.closed = (
            where,
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )

    def __call__(self, *args: Any, **options: Any) -> Waiting:
        self._wait("connecting")
        return self

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *error: Any) -> None:
        self.closed_by = threading.current_thread().name
        self.closed.set()

    def predict_video(self, *args: Any, **options: Any) -> Iterator[int]:
        yield 1
        self._wait("asking")
        yield 2

    def _wait(self, where: str) -> None:
        if where == self.where:
            self.reached.set()
            assert self.go_on.wait(20)


@pytest.mark.parametrize("where", ["connecting", "asking"])
def test_a_cancelled_video_ends_at_once_and_is_closed_later(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(where)
    monkeypatch.setattr(asynchronous, "Client", waiting)
    client = AsyncClient("h:1")
    monkeypatch.setattr(client._requests, "_model", SimpleNamespace(name="dfer"))

    async def windows() -> None:
        async with contextlib.aclosing(client.predict_video("v.mp4")) as found:
            async for _ in found:
                pass

    async def cancelled() -> None:
        task = asyncio.create_task(windows())
        while not waiting.reached.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The loop is free while the thread still waits.
        assert not waiting.go_on.is_set()
        assert not waiting.closed.is_set()
        waiting.go_on.set()

    asyncio.run(cancelled())
    assert waiting.closed.wait(20)


def test_a_video_that_is_left_is_closed_by_the_thread_that_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP's sockets belong to it."""
    waiting = Waiting("nowhere")
    monkeypatch.setattr(asynchronous, "Client", waiting)
    client = AsyncClient("h:1")
    monkeypatch.setattr(client._requests, "_model", SimpleNamespace(name="dfer"))

    async def first() -> int:
        async with contextlib.aclosing(client.predict_video("v.mp4")) as found:
            async for window in found:
                return window  # type: ignore[return-value]
        return 0

    assert asyncio.run(first()) == 1
    assert waiting.closed.wait(20)
    assert waiting.closed_by.startswith("predict_video")
