"""What a process of its own is said to need."""

import numpy as np
import pytest
from cold_start import run_alone, start_server

from dfer_deploy.bundle import Bundle
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
    seconds, peak = start_server(environment, bundle, 32)
    assert list(seconds) == ["server ready", "first answer", "second answer"]
    assert min(seconds.values()) > 0
    assert 0.1 < peak < 2  # tritonserver and two processes with onnxruntime; the guard alone has 0.01
