"""The cores and the memory that this process may use, also in a container. Needs only the standard library.

The file is copied beside the models that Triton's Python backend runs.

Source: the kernel's documentation of cgroup v2, "cpu.max" and "memory.max", and of v1, "cpu.cfs_quota_us".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1.

    A quota of a container counts, rounded up: a thread more than its cores waits most of the time. All cores count
    where the system reports nothing (macOS, Windows).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cpu_quotas())]))


def memory_limits(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> list[tuple[int, int]]:
    """Return the limit and the use, in bytes, of each cgroup of this process that has a limit."""
    found = []
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for folder in _groups("memory", root, own):
            limit, usage = _text(folder / limit_name), _text(folder / usage_name)
            if limit.isdecimal() and usage.isdecimal():
                found.append((int(limit), int(usage)))
    return found


def _cpu_quotas(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> Iterator[float]:
    """The quota of each cgroup of this process that has one, in cores."""
    for folder in _groups("cpu", root, own):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, of v2 and of v1's controller.

    In a container, the group's path may be that on the host, which is not visible; then only the topmost is found.
    """
    for line in _text(own).splitlines() or ["0::/", f"0:{controller}:/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        for top in (root / controllers, root / controller) if controllers else (root,):
            group = top.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
            yield group
            while group != top:
                group = group.parent
                yield group


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16).strip()
    except OSError:
        return ""
