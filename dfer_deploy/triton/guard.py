"""A small process between dfer-deploy and tritonserver that cleans up, whichever of the two dies.

``server.py`` runs this file as a script, with the standard library only. The script starts tritonserver as its child
and watches three things: its standard input, which closes when the parent process ends in any way; the server; and the
stub processes in which the models run, because a model stays "ready" after its stub has died. When one of them ends, it
ends the others, and removes the shared memory and the folder that the Python backend makes.

    guard.py MARK EXIT_TIMEOUT_S LOG (keep|drop) END COMMAND…

- MARK occurs in the command line of every process to be ended and in the names of the shared memory.
- EXIT_TIMEOUT_S is the time in seconds that the server gets to stop; 0 kills it at once.
- LOG is the file of the server's output. With ``drop``, it is removed if the parent process has died.
- END is a command as a JSON list, empty for none. It runs after all processes have ended, because a container outlives
  the client that started it.
- COMMAND starts the server.

Standard input takes the lines ``watch`` (the models are loaded, and a stub that ends is a failure from now on) and
``stop``. The last line on standard output is the reason of the end: ``stopped``, ``orphaned``, ``server STATUS``
(negative: a signal) or ``stub PATH`` with the path of the model whose process died.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

POLL_S = 0.2
_KILL_TIMEOUT_S = 10.0
_END_COMMAND_TIMEOUT_S = 30.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- not a place that we choose: POSIX shared memory on Linux
BACKEND_FOLDERS = Path("/tmp")  # noqa: S108 -- the Python backend makes python_env_XXXXXX there and nowhere else


def main(arguments: list[str]) -> int:
    """Run until the server has ended and everything is cleaned up. The exit code is always 0."""
    mark, exit_timeout_s, log, keep_or_drop, end, *command = arguments
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    # Stubs whose server died become children of this process, which waits for them, so no zombies remain.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    folders_before = _backend_folders()

    def in_child() -> None:
        # The child would inherit the ignored signals.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with Path(log).open("ab") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=in_child)
    reason, folders = _supervise(server, parent, folders_before)
    if reason in ("stopped", "orphaned") and float(exit_timeout_s) > 0:
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(float(exit_timeout_s))
    end_processes(mark)
    server.wait()
    run_end_command(json.loads(end))
    _reap()
    remove_leftovers(mark, folders)
    if reason == "orphaned" and keep_or_drop == "drop":
        Path(log).unlink(missing_ok=True)
    with contextlib.suppress(BrokenPipeError):
        print(reason, flush=True)
    return 0


def _supervise(server: subprocess.Popen[bytes], parent: int, folders_before: set[Path]) -> tuple[str, set[Path]]:
    """Wait for the first reason to end, and return it with the folders that the backend made."""
    lifeline = sys.stdin.fileno()
    stubs: dict[int, str] = {}
    folders: set[Path] = set()
    watching = False
    while True:
        readable, _, _ = select.select([lifeline], [], [], POLL_S)
        words = os.read(lifeline, 4096) if readable else None
        if not watching:
            # Stubs are recorded before the models are loaded, because a dead process has no command line.
            stubs |= _stubs(server.pid)
            folders = _backend_folders() - folders_before
            watching = b"watch" in (words or b"")
        if server.poll() is not None:
            return f"server {server.returncode}", folders
        if words is not None and (words == b"" or b"stop" in words):
            return ("stopped" if words else "orphaned"), folders
        if os.getppid() != parent:
            # Standard input may still be open in another process that the parent has forked.
            return "orphaned", folders
        for pid, model in stubs.items():
            if watching and not _is_alive(pid):
                return f"stub {model}", folders


def end_processes(mark: str) -> None:
    """Kill every process whose command line contains ``mark``, except this one, until none is left.

    It gives up after ``_KILL_TIMEOUT_S``, because a process that hangs in the kernel cannot be killed.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while time.monotonic() < deadline:
        found = False
        for process in _processes():
            if process == os.getpid() or mark not in " ".join(_command_line(process)) or not _is_alive(process):
                continue
            found = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.02)


def run_end_command(command: list[str]) -> None:
    """Run the end command, and ignore its failure: usually the server has already ended."""
    if command:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=_END_COMMAND_TIMEOUT_S, check=False,
            )  # fmt: skip


def remove_leftovers(mark: str, folders: set[Path]) -> None:
    """Remove the shared memory regions named after ``mark``, and the backend's folders if they are empty."""
    for region in SHARED_MEMORY.glob(f"{mark}*"):
        region.unlink(missing_ok=True)
    for folder in folders:
        # Another server that started at the same time may have made it. A folder in use is not empty.
        with contextlib.suppress(OSError):
            folder.rmdir()


def _backend_folders() -> set[Path]:
    return set(BACKEND_FOLDERS.glob("python_env_*"))


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _state(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the name: state, parent, …; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    state = _state(pid)
    return bool(state) and state[0] not in "ZX"


def _stubs(server: int) -> dict[int, str]:
    """The server's children that run a model, and the path of its model.py (their first argument)."""
    children = [pid for pid in _processes() if _state(pid)[1:2] == [str(server)]]
    arguments = {pid: "".join(_command_line(pid)[1:2]) for pid in children}
    return {pid: model for pid, model in arguments.items() if model.endswith(".py")}


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0):
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
