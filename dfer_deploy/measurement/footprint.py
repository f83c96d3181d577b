"""Measure the disk space of a bundle and the memory of its server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.triton.ports import port_holder

PROC = Path("/proc")
"""The kernel's information about processes."""


@dataclass(frozen=True)
class Footprint:
    """Sizes in 10^6 bytes.

    Attributes:
        size_mb: size of all files of the bundle. A file with several names (a hard link) counts once.
        memory_mb: memory of the server's processes, in which a shared page is divided by the number of its users; None
            if it was not measured.
    """

    size_mb: float
    memory_mb: float | None


def memory_is_measured(bundle: Bundle, url: str | None) -> bool:
    """Return whether this process starts an embedded server. The processes of a container cannot be measured."""
    return url is None and bundle.manifest.target == "embedded"


def measured_footprint(bundle: Bundle, *, server_port: int | None) -> Footprint:
    """Measure the sizes now.

    Args:
        bundle: the bundle whose files are counted.
        server_port: port of its server on this machine; None to omit its memory.
    """
    found = [path.stat() for path in bundle.path.rglob("*") if path.is_file()]
    size = sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())
    memory = None if server_port is None else held_bytes(server_processes(server_port))
    return Footprint(size / 1e6, None if memory is None else memory / 1e6)


def server_processes(port: int) -> list[int]:
    """Return the process that listens on a port of this machine, and its descendants; empty if it is not found."""
    holder = port_holder(port)
    return [] if holder is None else [holder.pid, *descendants(holder.pid)]


def descendants(pid: int, proc: Path = PROC) -> list[int]:
    """Return the process ids of all descendants of a process."""
    children = defaultdict(list)
    for process in proc.iterdir():
        if process.name.isdigit():
            try:
                # The name in parentheses may contain anything. State and parent follow it (proc(5), /proc/pid/stat).
                fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # the process has ended
                continue
            children[int(fields[1])].append(int(process.name))
    found, waiting = [], [pid]
    while waiting:
        of_one = children[waiting.pop()]
        found += of_one
        waiting += of_one
    return found


def held_bytes(processes: Sequence[int], proc: Path = PROC) -> int | None:
    """Return the sum of the kernel's proportional set sizes in bytes (proc(5), /proc/pid/smaps_rollup).

    Processes that have ended count 0. The result is None if one cannot be read, or if none could be read.
    """
    found = []
    for pid in processes:
        try:
            lines = (proc / str(pid) / "smaps_rollup").read_text(errors="replace").splitlines()
        except (FileNotFoundError, ProcessLookupError):  # the process has ended
            continue
        except OSError:
            return None
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return sum(found) if found else None
