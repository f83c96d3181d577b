"""An iterator that runs ahead in its own thread, by a bounded number of items."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def prefetched(items: Iterator[T], ahead: int) -> Iterator[Iterator[T]]:
    """Run an iterator in a thread, at most ``ahead`` items before the consumer.

    An exception of the iterator is raised in the consumer, after the items before it. Leaving the context stops the
    thread after its current item, closes the iterator in the thread, and waits for the thread.

    Args:
        items: an iterator, which only the thread uses. A generator is closed at the end.
        ahead: number of items that may wait, at least 1.
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
    """A bounded queue from the thread that produces items to the thread that takes them.

    Attributes:
        dropped: number of items that newer ones replaced before they were taken; 0 unless ``newest_only`` is set.
    """

    def __init__(self, size: int, *, newest_only: bool = False) -> None:
        """
        Args:
            size: number of items that may wait, at least 1.
            newest_only: drop the oldest item when the buffer is full; otherwise the producer waits.
        """
        self._size, self._newest_only = size, newest_only
        self._items: deque[T] = deque()
        self._change = threading.Condition()
        self._stopped = self._ended = False
        self._error: BaseException | None = None
        self.dropped = 0

    def fill(self, items: Iterator[T]) -> None:
        """Put all items, in the thread that produces them, and close the iterator."""
        error: BaseException | None = None
        try:
            try:
                for item in items:
                    if not self._put(item):
                        break
            finally:
                if hasattr(items, "close"):
                    items.close()
        except BaseException as raised:  # ``taken`` raises it in the consumer
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
        """Yield the items as they arrive, then raise the producer's exception, if any."""
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
        """Stop the producer after its current item."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
