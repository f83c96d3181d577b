"""An iterator that works ahead in a thread of its own, by a bounded number of items."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def prefetched(items: Iterator[T], ahead: int) -> Iterator[Iterator[T]]:
    """Let an iterator run in a thread, at most ``ahead`` items before the consumer.

    What the iterator raises is raised where its items are taken, after those before. Leaving the context, for whatever
    reason, stops the thread after the item that it works on, closes the iterator in it and waits for both.

    Args:
        items: an iterator (a generator is closed); touched by the thread alone.
        ahead: how many items may wait, at least 1.
    """
    buffer = Buffer[T](ahead)
    thread = threading.Thread(target=buffer.fill, args=(items,), name=f"prefetch {ahead}", daemon=True)
    thread.start()
    try:
        yield buffer.taken()
    finally:
        buffer.stop()
        thread.join()


class Buffer(Generic[T]):
    """Hands items from the thread that makes them to the one that takes them.

    Attributes:
        dropped: how many items nobody took because a newer one came; 0 where makers wait.
    """

    def __init__(self, size: int, *, newest_only: bool = False) -> None:
        """
        Args:
            size: how many items may wait, at least 1.
            newest_only: with a full buffer, the oldest item is dropped; otherwise the maker waits.
        """
        self._size, self._newest_only = size, newest_only
        self._items: deque[T] = deque()
        self._change = threading.Condition()
        self._stopped = self._ended = False
        self._error: BaseException | None = None
        self.dropped = 0

    def fill(self, items: Iterator[T]) -> None:
        """Put all items; for the thread that makes them."""
        error: BaseException | None = None
        try:
            try:
                for item in items:
                    if not self._put(item):
                        break
            finally:
                if hasattr(items, "close"):
                    items.close()
        except BaseException as raised:  # whatever it is, whoever takes the items has to know
            error = raised
        with self._change:
            self._ended, self._error = True, error
            self._change.notify_all()

    def _put(self, item: T) -> bool:
        with self._change:
            if self._newest_only and len(self._items) == self._size:
                self._items.popleft()
                self.dropped += 1
            self._change.wait_for(lambda: len(self._items) < self._size or self._stopped)
            self._items.append(item)
            self._change.notify_all()
            return not self._stopped

    def taken(self) -> Iterator[T]:
        """Yield the items, as they come; then what the maker raised."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    break
                item = self._items.popleft()
                self._change.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let the maker end after the item that it works on."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
