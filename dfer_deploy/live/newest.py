"""An iterator that runs in a thread of its own, of which only the newest item waits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE_S = 2.0
"""For a camera that gives no frame any more; its thread ends with the process."""


@contextlib.contextmanager
def newest(items: Iterator[T], stopped: threading.Event) -> Iterator[tuple[Iterator[T], list[int]]]:
    """Lets an iterator run as fast as it goes; who takes its items gets the newest one.

    What the iterator raises is raised where its items are taken.

    Args:
        items: touched by the thread alone; closed at the end.
        stopped: is set when the context is left.

    Returns:
        The items, and a list whose only element counts those that nobody took.
    """
    slot = _Slot[T]()
    thread = threading.Thread(target=slot.fill, args=(items, stopped), name="newest", daemon=True)
    thread.start()
    try:
        yield slot.taken(), slot.missed
    finally:
        stopped.set()
        thread.join(_PATIENCE_S)


class _Slot(Generic[T]):
    def __init__(self) -> None:
        self.missed = [0]
        self._item: list[T] = []
        self._change = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    def fill(self, items: Iterator[T], stopped: threading.Event) -> None:
        error: BaseException | None = None
        try:
            for item in items:
                with self._change:
                    self.missed[0] += len(self._item)
                    self._item = [item]
                    self._change.notify_all()
                if stopped.is_set():
                    break
            if hasattr(items, "close"):
                items.close()
        except BaseException as raised:  # whatever it is, whoever takes the items has to know
            error = raised
        with self._change:
            self._ended, self._error = True, error
            self._change.notify_all()

    def taken(self) -> Iterator[T]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._item or self._ended)
                if not self._item:
                    break
                (item,), self._item = self._item, []
            yield item
        if self._error is not None:
            raise self._error
