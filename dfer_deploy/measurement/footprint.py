"""How much disk a bundle takes, and how much memory its server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.triton.ports import port_holder

PROC = Path("/proc")


@dataclass(frozen=True)
class Footprint:
    """In 10^6 bytes.

    Attributes:
        size_mb: all files of the bundle; one with several names (a hard link) counts once.
        memory_mb: of the server's processes, a page that several share divided between them; None where it was not
            measured.
    """

    size_mb: float
    memory_mb: float | None


def memory_is_measured(bundle: Bundle, url: str | None) -> bool:
    """Whether the server is the embedded one, started by this process; a container's processes are not ours."""
    return url is None and bundle.manifest.target == "embedded"


def measured_footprint(bundle: Bundle, *, server_port: int | None) -> Footprint:
    """Measures now.

    Args:
        bundle: whose files count.
        server_port: where its server listens on this machine; None where its memory is not to be measured.
    """
    found = [path.stat() for path in bundle.path.rglob("*") if path.is_file()]
    size = sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())
    memory = None if server_port is None else held_bytes(server_processes(server_port))
    return Footprint(size / 1e6, None if memory is None else memory / 1e6)


def server_processes(port: int) -> list[int]:
    """The process that listens on a port of this machine, and all that it started; empty where it is not found."""
    holder = port_holder(port)
    return [] if holder is None else [holder.pid, *descendants(holder.pid)]


def descendants(pid: int, proc: Path = PROC) -> list[int]:
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


def held_bytes(processes: Sequence[int], proc: Path = PROC) -> int | None:
    """The sum of the kernel's proportional set sizes (proc(5), /proc/pid/smaps_rollup).

    Those that have ended hold none. None where one may not be read, or none at all could be.
    """
    found = []
    for pid in processes:
        try:
            lines = (proc / str(pid) / "smaps_rollup").read_text(errors="replace").splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except OSError:
            return None
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return sum(found) if found else None
