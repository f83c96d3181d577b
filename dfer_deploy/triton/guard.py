"""A small process between dfer-deploy and tritonserver that cleans up, whichever of the two dies.

``server.py`` runs this file as a script, with the standard library only. The script starts tritonserver as its child
and watches three things: its standard input, which closes when the parent process ends in any way; the server; and the
stub processes in which the models run, because a model stays "ready" after its stub has died. When one of them ends, it
ends the others, and removes the shared memory and the folder that the Python backend makes.

A stub that stands still ends the server too, before Triton gives it up. After a second without a sign of life, Triton
2.51 gives the stub's shared memory to other requests. When the stub goes on, it writes there, and clients get the
answers of others. The sign of life is the thread that each stub wakes every 300 ms for Triton's own check
(python_backend, ``pb_stub.cc``): the kernel counts how often it has run. A machine that was paused as a whole paused
this process too. Triton may have given up its stubs then, so the server is ended as well.

    guard.py MARK EXIT_TIMEOUT_S LOG (keep|drop) END COMMAND…

- MARK occurs in the command line of every process to be ended and in the names of the shared memory.
- EXIT_TIMEOUT_S is the time in seconds that the server gets to stop; 0 kills it at once.
- LOG is the file of the server's output. With ``drop``, it is removed if the parent process has died.
- END is a command as a JSON list, empty for none. It runs after all processes have ended, because a container outlives
  the client that started it.
- COMMAND starts the server.

Standard input takes the lines ``watch`` (the models are loaded, and a stub that ends is a failure from now on) and
``stop``. The last line on standard output is the reason of the end: ``stopped``, ``orphaned``, ``server STATUS``
(negative: a signal), ``stub PATH`` with the path of the model whose process died, ``still PATH`` for one whose process
stood still, or ``paused SECONDS``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWNS = 0x20000
_CLONE_NEWUSER = 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 1 << 14, 1 << 18

POLL_S = 0.1
STILL_S = 0.6
"""Longest time without a sign of life of a stub, in seconds: twice its interval, and well below Triton's second."""

LOADING_GRACE_S = 5.0
"""Time in seconds that the server gets, after a stub has died while it loads, to end by itself with the reason in its
log. It ends at once if the model raised an exception, and never if the stub was killed or could not be started."""

PAUSED_S = 1.0
"""Longest time between two looks of this process, in seconds. Triton's limit for the stubs is as long."""

STACK_BYTES = 16 << 30
"""Limits a thread's stack. It is reserved address space and takes memory only where it is used: about 80 bytes for each
level of nested JSON, of which a body of 64 MiB can have 67 million."""

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
        os.umask(0o077)
        _raise_stack_limit()
        if not json.loads(end):  # a container has shared memory of its own
            _hide_shared_memory(libc)

    with Path(log).open("ab") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=in_child)
    reason, folders = _supervise(server, parent, folders_before)
    if reason.startswith(("still", "paused")):
        server.kill()  # at once and before the stubs, so that it cannot answer any more
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


def _raise_stack_limit() -> None:
    """Give the server's threads stacks for deeply nested JSON: its parser is recursive, and 200 kB of it ended it.

    Nothing is changed where address space counts as memory, because threads could not start then.
    """
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    with contextlib.suppress(OSError, ValueError):
        space, _ = resource.getrlimit(resource.RLIMIT_AS)
        if space != resource.RLIM_INFINITY or overcommit.read_text().strip() == "2":
            return
        _, hard = resource.getrlimit(resource.RLIMIT_STACK)
        wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


def _hide_shared_memory(libc: ctypes.CDLL) -> None:
    """Give this process and its children a ``/dev/shm`` of their own, if the kernel allows it.

    The Python backend's shared memory holds the frames of requests, and Boost lets every user read it, whatever the
    umask is. A child tries first, because a half-made namespace cannot be left: some systems let every user make one,
    and then forbid everything in it.
    """
    child = os.fork()
    if child == 0:
        os._exit(0 if _enter_private_namespace(libc) else 1)
    _, status = os.waitpid(child, 0)
    if status == 0:
        _enter_private_namespace(libc)


def _enter_private_namespace(libc: ctypes.CDLL) -> bool:
    """Mount an empty ``/dev/shm`` that other processes do not see. It needs root, or a user namespace."""
    user, group = os.geteuid(), os.getegid()
    try:
        if libc.unshare(_CLONE_NEWNS) != 0:
            if libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER) != 0:
                return False
            maps = (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"))
            for name, line in maps:
                Path(f"/proc/self/{name}").write_text(line)
    except OSError:
        return False
    # Otherwise the mount would reach the other processes of the machine.
    if libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    flags = _MS_NOSUID | _MS_NODEV
    return bool(libc.mount(b"tmpfs", bytes(SHARED_MEMORY), b"tmpfs", flags, b"mode=0700") == 0)


def _supervise(server: subprocess.Popen[bytes], parent: int, folders_before: set[Path]) -> tuple[str, set[Path]]:
    """Wait for the first reason to end, and return it with the folders that the backend made."""
    lifeline = sys.stdin.fileno()
    stubs: dict[int, str] = {}
    folders: set[Path] = set()
    pulses: dict[int, Pulse] = {}
    dead_since: float | None = None
    watching = False
    while True:
        before = time.monotonic()
        readable, _, _ = select.select([lifeline], [], [], POLL_S)
        late = time.monotonic() - before
        words = os.read(lifeline, 4096) if readable else None
        if not watching:
            # Stubs are recorded before the models are loaded, because a dead process has no command line.
            stubs |= _stubs(server.pid)
            folders = _backend_folders() - folders_before
            watching = b"watch" in (words or b"")
            pulses = {pid: Pulse(pid) for pid in stubs}
        if server.poll() is not None:
            return f"server {server.returncode}", folders
        if words is not None and (words == b"" or b"stop" in words):
            return ("stopped" if words else "orphaned"), folders
        if os.getppid() != parent:
            # Standard input may still be open in another process that the parent has forked.
            return "orphaned", folders
        if not watching:
            dead = _dead_while_loading(server.pid, stubs)
            dead_since = None if dead is None else dead_since or before
            if dead_since is not None and before - dead_since > LOADING_GRACE_S:
                return f"stub {dead}", folders
            continue
        if late > PAUSED_S:
            return f"paused {late:.1f}", folders
        for pid, model in stubs.items():
            if not _is_alive(pid):
                return f"stub {model}", folders
            if pulses[pid].still_s(late) > STILL_S:
                return f"still {model}", folders


def _dead_while_loading(server: int, stubs: dict[int, str]) -> str | None:
    """The path of a model whose stub has died, empty if it died before its path was seen; None if none has died."""
    ended = [model for pid, model in stubs.items() if not _is_alive(pid)]
    zombies = any(_state(pid)[:2] == ["Z", str(server)] for pid in _processes())
    return ended[0] if ended else "" if zombies else None


class Pulse:
    """Measures how long no thread of a process has run."""

    def __init__(self, pid: int) -> None:
        self._threads = Path(f"/proc/{pid}/task")
        self._runs: dict[str, str] = {}
        self._last = time.monotonic()
        self._is_counted = False

    def still_s(self, late: float) -> float:
        """Return for how many seconds no thread has run; 0 if the kernel does not count the runs.

        Args:
            late: seconds since the previous call. After a long time, this process itself was not run, so the other one
                cannot be blamed, and its time starts anew.
        """
        now = time.monotonic()
        runs = self._read_runs()
        has_run = any(runs[thread] != self._runs[thread] for thread in runs.keys() & self._runs.keys())
        self._runs = runs
        self._is_counted = self._is_counted or has_run
        if has_run or late > STILL_S / 2:
            self._last = now
        return now - self._last if self._is_counted else 0.0

    def _read_runs(self) -> dict[str, str]:
        """How often each thread has been run, by its number (the third field of ``schedstat``)."""
        runs = {}
        with contextlib.suppress(OSError):
            for thread in self._threads.iterdir():
                runs[thread.name] = (thread / "schedstat").read_text().rpartition(" ")[2]
        return runs


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
    """Remove the shared memory regions and the folder of links named after ``mark``, and the backend's folders if they
    are empty.
    """
    for place in link_places():
        for links in place.glob(f"{mark}*"):
            shutil.rmtree(links, ignore_errors=True)
    for region in SHARED_MEMORY.glob(f"{mark}*"):
        region.unlink(missing_ok=True)
    for folder in folders:
        # Another server that started at the same time may have made it. A folder in use is not empty.
        with contextlib.suppress(OSError):
            folder.rmdir()


def link_places() -> list[Path]:
    """The folders where a private folder of links may be (``plain_paths.py``), in the order of preference."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return [*([Path(runtime)] if os.path.isabs(runtime) else []), Path("/tmp"), Path("/var/tmp")]  # noqa: S108, PTH117


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
