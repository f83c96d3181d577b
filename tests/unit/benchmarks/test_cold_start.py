"""What a process of its own is said to need."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from cold_start import run_alone, start_server

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.measurement.footprint import held_bytes
from dfer_deploy.triton.environment import TritonEnvironment


def test_the_peak_is_that_of_the_process_alone() -> None:
    held = np.ones(400_000_000, np.uint8)  # a process started with vfork would inherit this peak
    seconds, small = run_alone("-c", "pass")
    _, large = run_alone("-c", "x = b'1' * 300_000_000")
    assert held[-1] == 1
    assert seconds > 0
    assert small < 0.2
    assert large == pytest.approx(small + 0.3, abs=0.03)


def test_a_process_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match="last words"):
        run_alone("-c", "raise SystemExit('last words')")


def test_the_server_counts_with_all_its_processes(environment: TritonEnvironment, bundle: Bundle) -> None:
    stages, held = start_server(environment, bundle, 32)
    assert list(stages) == ["server ready", "first answer", "second answer"]
    assert min(seconds for seconds, _ in stages.values()) > 0
    ready, first, second = (peak for _, peak in stages.values())
    assert (
        0.1 < ready < first <= second < 2
    )  # tritonserver and two processes with onnxruntime; the guard alone has 0.01
    assert 0.05 < held < second


def test_what_processes_share_is_held_once(tmp_path: Path) -> None:
    """Two processes that map a file of 200 MB hold half of it each."""
    shared = tmp_path / "shared"
    shared.write_bytes(b"1" * 200_000_000)
    script = (
        "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
        "sum(m[::4096]); print(flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(shared)]
    with ExitStack() as stack:
        held = []
        processes = []
        for _ in range(2):
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert process.stdout is not None
            process.stdout.readline()
            processes.append(process.pid)
            held.append([held_bytes([pid]) or 0 for pid in processes])
    assert held[0][0] == pytest.approx(held[1][0] + 1e8, abs=3e7)
    assert held[1][0] == pytest.approx(held[1][1], abs=3e7)
