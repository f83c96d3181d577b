"""The guard's measure of life, on real processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfer_deploy.triton import guard
from dfer_deploy.triton.guard import STILL_S, Pulse

BEATING = """
import threading, time
def beat():
    while True:
        time.sleep(0.3)
threading.Thread(target=beat, daemon=True).start()
print("up", flush=True)
input()
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """A process that wakes every 300 ms, as a stub does."""
    command = [sys.executable, "-c", BEATING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
        started.kill()


def watched(pulse: Pulse, seconds: float) -> float:
    """The longest time without a run within some seconds."""
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        longest = max(longest, pulse.still_s(0.05))
    return longest


def test_a_process_that_is_stopped_stands_still_until_it_goes_on(process: subprocess.Popen[str]) -> None:
    pulse = Pulse(process.pid)
    watched(pulse, 1.0)
    process.send_signal(signal.SIGSTOP)
    assert watched(pulse, 1.2) > STILL_S
    process.send_signal(signal.SIGCONT)
    time.sleep(0.7)
    assert pulse.still_s(0.05) == 0


def test_one_that_waits_as_a_stub_does_is_alive(process: subprocess.Popen[str]) -> None:
    """The machine may be busy, so the limit is compared with the best of some seconds."""
    pulse = Pulse(process.pid)
    watched(pulse, 0.5)
    assert min(watched(pulse, 1.0) for _ in range(5)) < STILL_S


def test_a_guard_that_was_late_itself_blames_nobody(process: subprocess.Popen[str]) -> None:
    pulse = Pulse(process.pid)
    watched(pulse, 1.0)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    pulse.still_s(0.05)
    assert pulse.still_s(1.0) < STILL_S


def test_without_counts_of_the_kernel_nobody_is_blamed(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    pulse = Pulse(process.pid)
    pulse._threads = tmp_path
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("0 0 0\n")
    assert watched(pulse, 0.8) == 0


def in_child(set_up: Callable[[], object], command: str) -> str:
    """What a shell prints in a process that has been set up so."""
    done = subprocess.run(["/bin/sh", "-c", command], preexec_fn=set_up, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_shared_memory_is_private_or_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel forbids it, the process goes on as before, with its own rights."""
    libc = ctypes.CDLL(None)
    seen = in_child(lambda: guard._hide_shared_memory(libc), "ls -A /dev/shm | wc -l; id -u")
    assert seen.split()[1] == str(os.geteuid())
    monkeypatch.setattr(guard, "_enter_private_namespace", lambda libc: False)
    seen = in_child(lambda: guard._hide_shared_memory(libc), "cat /proc/self/mountinfo | wc -l; id -u")
    assert seen == in_child(lambda: None, "cat /proc/self/mountinfo | wc -l; id -u")


def test_stacks_stay_as_they_are_where_address_space_is_limited() -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
        guard._raise_stack_limit()

    assert in_child(limited, "ulimit -s") == in_child(lambda: None, "ulimit -s")
    raised = in_child(guard._raise_stack_limit, "ulimit -s")
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard == resource.RLIM_INFINITY:
        assert raised == str(guard.STACK_BYTES >> 10)
