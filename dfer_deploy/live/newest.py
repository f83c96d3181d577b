"""An iterator that runs in a thread of its own, of which only the newest item waits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar

from dfer_deploy.clips.prefetch import Buffer

T = TypeVar("T")

_PATIENCE_S = 2.0
"""For a camera that gives no frame any more; its thread ends with the process."""


@contextlib.contextmanager
def newest(items: Iterator[T], stopped: threading.Event) -> Iterator[Buffer[T]]:
    """Let an iterator run as fast as it goes; the consumer gets the newest item.

    What the iterator raises is raised where its items are taken.

    Args:
        items: touched by the thread alone; closed at the end.
        stopped: is set when the context is left, so that the iterator need not sleep to its end.
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
