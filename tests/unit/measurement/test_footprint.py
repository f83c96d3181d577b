"""What is measured of a server: its own processes, and nothing where they cannot be."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.measurement.footprint import descendants, held_bytes, measured_footprint, server_processes

HOLD = "block = b'x' * {}; print('ready', flush=True); input()"
SERVER = """
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process and its first line, which ends with its standard input."""
    command = [sys.executable, "-c", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.communicate("\n")


def test_a_file_with_two_names_counts_once_and_nothing_is_measured_without_a_server(bundle: Bundle) -> None:
    found = measured_footprint(bundle, server_port=None)
    files = {path.stat().st_ino: path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()}
    assert found.size_mb == sum(files.values()) / 1e6
    assert found.size_mb < sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()) / 1e6
    assert found.memory_mb is None


def test_what_the_server_started_counts_and_nothing_else_that_this_process_did(bundle: Bundle) -> None:
    """Of two children the one that does not listen is larger than all that is measured."""
    with started(HOLD.format(300_000_000)), started(SERVER, HOLD.format(50_000_000)) as (server, port):
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        assert server.pid in server_processes(int(port))
        assert len(server_processes(int(port))) == 2
        memory = measured_footprint(bundle, server_port=int(port)).memory_mb
    assert memory is not None
    assert 50 < memory < 200


def test_a_server_that_is_gone_has_no_memory_rather_than_none_used(bundle: Bundle) -> None:
    with started(SERVER, "pass") as (_, port):
        pass
    assert server_processes(int(port)) == []
    assert measured_footprint(bundle, server_port=int(port)).memory_mb is None


def test_what_cannot_be_read_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "smaps_rollup").write_text(
        "00-ff ---p 00 00:00 0 [rollup]\nRss: 9 kB\nPss: 2 kB\nPss_Anon: 7 kB\n"
    )
    assert held_bytes([5, 6], tmp_path) == 2048, "6 has ended"
    assert held_bytes([6], tmp_path) is None
    assert held_bytes([], tmp_path) is None
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps_rollup").mkdir()  # another error than that of a process that has ended
    assert held_bytes([5, 7], tmp_path) is None


def test_a_process_may_be_called_anything(tmp_path: Path) -> None:
    for pid, parent in ((5, 1), (6, 5), (7, 6), (8, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) S 1 (b) S {parent} 0 0")
    (tmp_path / "9").mkdir()
    assert sorted(descendants(5, tmp_path)) == [6, 7]
