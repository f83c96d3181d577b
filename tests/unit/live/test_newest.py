from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dfer_deploy.live.newest import newest


def test_the_newest_wins_and_the_others_are_counted() -> None:
    given = threading.Event()

    def items() -> Iterator[int]:
        yield from range(5)
        given.set()

    with newest(items(), threading.Event()) as buffer:
        assert given.wait(10)
        assert list(buffer.taken()) == [4]
        assert buffer.dropped == 4


def test_what_the_iterator_raises_comes_after_its_items() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with newest(items(), threading.Event()) as buffer:
        taken = buffer.taken()
        assert next(taken) == 1
        with pytest.raises(ValueError, match="broken"):
            next(taken)


class Camera:
    """An iterator that is closed by whoever is told to, not by the garbage collector."""

    closed = False

    def __iter__(self) -> Camera:
        return self

    def __next__(self) -> int:
        return 1

    def close(self) -> None:
        self.closed = True


def test_leaving_closes_what_is_no_generator() -> None:
    camera = Camera()
    with newest(camera, threading.Event()) as buffer:
        assert next(buffer.taken()) == 1
    assert camera.closed


def test_leaving_stops_the_thread_and_closes_the_iterator() -> None:
    closed, stopped = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with newest(items(), stopped) as buffer:
        assert next(buffer.taken()) == 1
    assert stopped.is_set()
    assert closed.is_set()
    assert not any(thread.name == "newest" for thread in threading.enumerate())
