"""Check memory, shared memory, disk and ports of this machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.doctor.finding import Finding
from dfer_deploy.errors import DferDeployError
from dfer_deploy.machine.cgroups import memory_limits
from dfer_deploy.triton.cache import CACHE_VARIABLE, cache_folder
from dfer_deploy.triton.ports import reserve_ports

PORTS = {"HTTP": 8000, "gRPC": 8001, "metrics": 8002}
"""Default ports of ``serve``."""

FREE_PORTS = "--http-port 0 --grpc-port 0 --metrics-port 0"
"""Options with which ``serve`` takes free ports."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, never written
SHARED_MEMORY_BYTES = 48 << 20
"""Smallest sufficient shared memory. Docker's default is 64 MB. Triton's Python backend takes 1 MB for each model
instance and grows with its batches."""

CACHE_BYTES = 1 << 30
"""Smallest sufficient disk space. The embedded server's environment takes 390 MB, and pip needs as much again to
unpack."""


_NO_LIMIT_BYTES = 1 << 60
"""A limit from here on means that there is no limit."""


@dataclass(frozen=True)
class MachineResources:
    """The resources of a machine in bytes, each None if it is unknown.

    Attributes:
        memory_bytes: all memory, or the container's limit if that is smaller.
        available_bytes: the part of it that is available now.
        shared_memory_bytes: free bytes in /dev/shm.
        here: the current folder, and its free bytes.
        cache: dfer-deploy's cache folder, and its free bytes.
        taken_ports: why one of ``PORTS`` is not free; empty if all are free.
        problem: why nothing could be found out; empty if it could.
    """

    memory_bytes: int | None = None
    available_bytes: int | None = None
    shared_memory_bytes: int | None = None
    here: tuple[str, int | None] = ("", None)
    cache: tuple[str, int | None] = ("", None)
    taken_ports: str = ""
    problem: str = ""


def probe_resources(
    *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup"), shared: Path = SHARED_MEMORY
) -> MachineResources:
    """Examine this machine. Values that cannot be read are None."""
    total, available = _memory(proc, cgroup)
    taken = ""
    try:
        reserve_ports("127.0.0.1", PORTS)
    except DferDeployError as error:
        taken = str(error)
    try:
        cache: Path | None = cache_folder()
    except DferDeployError:
        cache = None
    of_cache = ("the home folder of this user", None) if cache is None else (str(cache), _free_above(cache))
    here = Path(os.curdir)
    return MachineResources(
        total, available, _free(shared), (str(here), _free(here)), of_cache, taken
    )  # fmt: skip


def resource_findings(resources: MachineResources) -> list[Finding]:
    """Return the findings about memory, shared memory, disk and ports."""
    if resources.problem:
        return [Finding("resources", "problem", resources.problem)]
    total, available = resources.memory_bytes, resources.available_bytes
    if total is None or available is None:
        memory = Finding("memory", "problem", "this machine does not say (/proc/meminfo)", "watch it while you serve")
    else:
        memory = Finding("memory", "ok", f"{gigabytes(available)} of {gigabytes(total)} can be had")
    folder, space = resources.cache
    advice = f"free about 1 GB there, or choose another place with the variable {CACHE_VARIABLE}"
    if space is None:
        cache = Finding("disk, cache", "problem", f"{folder} cannot be looked at", advice)
    elif space < CACHE_BYTES:
        cache = Finding("disk, cache", "problem", f"{gigabytes(space)} free in {folder}", advice)
    else:
        cache = Finding("disk, cache", "ok", f"{gigabytes(space)} free in {folder}")
    here = resources.here[1]
    return [
        memory,
        _shared_memory(resources.shared_memory_bytes),
        Finding("disk, here", "problem", "the current folder cannot be looked at", "go to another folder")
        if here is None
        else Finding("disk, here", "ok", f"{gigabytes(here)} free"),
        cache,
        Finding("ports", "problem", resources.taken_ports, f"or serve with {FREE_PORTS}")
        if resources.taken_ports
        else Finding("ports", "ok", ", ".join(map(str, PORTS.values())) + " are free"),
    ]


def gigabytes(count: int) -> str:
    """Format a number of bytes: ``3.2 GB``, or ``640 MB`` below one GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _shared_memory(free: int | None) -> Finding:
    advice = "in a container, start it with --shm-size=1g; the embedded server's models exchange arrays there"
    if free is None:
        return Finding("shared memory", "problem", f"{SHARED_MEMORY} is not there", advice)
    if free < SHARED_MEMORY_BYTES:
        return Finding("shared memory", "problem", f"{gigabytes(free)} free in {SHARED_MEMORY}", advice)
    return Finding("shared memory", "ok", f"{gigabytes(free)} free in {SHARED_MEMORY}")


def _memory(proc: Path, cgroup: Path) -> tuple[int | None, int | None]:
    """Return all and available memory in bytes: the machine's, or the container's limit if that is smaller."""
    fields = dict(line.split(":", 1) for line in _text(proc / "meminfo").splitlines() if ":" in line)
    total, available = (_kibibytes(fields.get(name, "")) for name in ("MemTotal", "MemAvailable"))
    # v1's 2^63 minus one page means that there is no limit.
    for limit, usage in memory_limits(cgroup, proc / "self" / "cgroup"):
        free = max(0, limit - usage)
        if limit < (_NO_LIMIT_BYTES if total is None else total):
            total = limit
        if limit < _NO_LIMIT_BYTES:
            available = free if available is None else min(available, free)
    return total, available


def _kibibytes(value: str) -> int | None:
    number = value.split()[:1]
    return int(number[0]) * 1024 if number and number[0].isdecimal() else None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _free_above(folder: Path) -> int | None:
    """Return the free bytes of the file system where the folder is or would be created."""
    return next((free for place in (folder, *folder.parents) if (free := _free(place)) is not None), None)
