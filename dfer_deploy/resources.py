"""How much disk a bundle takes, and how much memory its server."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.bundle import Bundle


@dataclass(frozen=True)
class Resources:
    """In 10^6 bytes.

    Attributes:
        size_mb: all files of the bundle; one with several names (a hard link) counts once.
        memory_mb: of the server's processes, a page that several share divided between them; None where it is not
            measured.
    """

    size_mb: float
    memory_mb: float | None


def memory_is_measured(bundle: Bundle, url: str | None) -> bool:
    """Whether the server is the embedded one, started by this process; a container's processes are not ours."""
    return url is None and bundle.manifest.target == "embedded"


def measured_resources(bundle: Bundle, *, served_here: bool) -> Resources:
    """Measures now; the server, where there is one, is the only child of this process."""
    found = [path.stat() for path in bundle.path.rglob("*") if path.is_file()]
    size = sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())
    memory = sum(_proportional_bytes(pid) for pid in descendants(os.getpid())) if served_here else None
    return Resources(size / 1e6, None if memory is None else memory / 1e6)


def descendants(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """Process numbers of all children of a process, and of theirs."""
    children = defaultdict(list)
    for process in proc.iterdir():
        if process.name.isdigit():
            try:
                # The name in parentheses may hold anything; state and parent follow it (proc(5), /proc/pid/stat).
                fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            children[int(fields[1])].append(int(process.name))
    found, waiting = [], [pid]
    while waiting:
        of_one = children[waiting.pop()]
        found += of_one
        waiting += of_one
    return found


def _proportional_bytes(pid: int) -> int:
    """The kernel's proportional set size (proc(5), /proc/pid/smaps_rollup)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
