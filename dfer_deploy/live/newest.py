"""An iterator that runs in its own thread, of which only the newest item is kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar

from dfer_deploy.clips.prefetch import Buffer

T = TypeVar("T")

_PATIENCE_S = 2.0
"""Limits the wait for the thread at the end, in seconds. If a camera sends no more frames, its thread ends with the
process."""


@contextlib.contextmanager
def newest(items: Iterator[T], stopped: threading.Event) -> Iterator[Buffer[T]]:
    """Run an iterator in a thread without waiting for the consumer, who gets the newest item.

    An exception of the iterator is raised in the consumer.

    Args:
        items: an iterator, which only the thread uses. It is closed at the end.
        stopped: set when the context is left, so that the iterator can stop waiting.
    """
    buffer = Buffer[T](1, newest_only=True)
    thread = threading.Thread(target=buffer.fill, args=(items,), name="newest", daemon=True)
    thread.start()
    try:
        yield buffer
    finally:
        stopped.set()
        buffer.stop()
        thread.join(_PATIENCE_S)
