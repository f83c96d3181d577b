"""The processor cores of this machine."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """How many cores this process may use; where the system does not tell (macOS, Windows), all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
