"""What is made of perf_analyzer's numbers and Triton's statistics."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import throughput
from throughput import Level, clips_per_execution, in_process_throughput, levels, saturation_point, summary

from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.perf_analyzer import LoadResult
from dfer_deploy.triton.ports import Endpoints


def load(throughput: float, *, concurrency: int = 1) -> LoadResult:
    return LoadResult(concurrency, throughput, 9.0, 11.0, 12.0, 10.0, 2.0, 0.5, 4.0, 0.5, None, None)


def test_the_axes_meet_in_one_level() -> None:
    found = [level for level in levels((1, 2, 4), (1, 3)) if level.way == "HTTP"]
    assert [(level.concurrency, level.batch) for level in found] == [(1, 1), (2, 1), (4, 1), (1, 3)]


def test_saturation_is_where_more_requests_bring_no_more_than_noise() -> None:
    assert saturation_point({1: [5.0, 5.1, 4.9], 2: [9.0, 9.6, 9.5], 4: [9.4, 10.0, 9.9]}) == 2
    assert saturation_point({1: [5.0, 5.1, 4.9], 2: [9.0, 9.1, 9.2], 4: [9.8, 10.0, 9.9]}) == 4
    assert saturation_point({1: [9.0], 2: [5.0]}) == 1


def test_batcher_efficiency_is_inferences_over_executions() -> None:
    assert clips_per_execution(Counter({1: 2, 4: 2})) == 2.5
    assert clips_per_execution(Counter()) == 0


def test_the_summary_divides_a_request_into_queue_execution_and_all_else() -> None:
    level = Level("gRPC", 1, 1)
    seconds = {1: [0.1, 0.05], 4: [0.16, 0.08]}
    result = summary(seconds, {level: [load(8.0), load(18.0)]}, {level: [Counter({2: 1}), Counter({2: 2})]})
    (row,) = result["levels"]
    assert (row["queue_ms"], row["execution_ms"], row["else_ms"]) == (2.0, 5.0, 3.0)
    assert row["clips_per_execution"] == 2
    assert row["against_in_process"]["rounds"] == pytest.approx([0.8, 0.9])
    assert result["saturation"]["gRPC"]["server_adds_to_single_clips"] == "15.0% (10.0% to 20.0%)"
    # Two clips in one execution take 0.12 s and 0.06 s here.
    assert result["saturation"]["gRPC"]["server_adds"] == "49.0% (46.0% to 52.0%)"


def test_the_same_executions_are_what_the_server_is_held_against() -> None:
    seconds = {1: 1.0, 2: 1.5, 4: 3.0}
    assert in_process_throughput(Counter({1: 2}), seconds) == 1
    assert in_process_throughput(Counter({1: 1, 3: 1}), seconds) == pytest.approx(4 / 3.25)


def test_a_level_that_cannot_be_is_a_sentence() -> None:
    for text in ("0", "1,x", ""):
        done = subprocess.run(
            [sys.executable, throughput.__file__, "--concurrency", text], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert f"{text!r} is not a list of numbers from 1 on such as 1,2,4" in done.stderr


def test_what_an_environment_restricts_is_what_its_server_closes() -> None:
    nowhere = Path("/nowhere")
    server = TritonEnvironment(nowhere, nowhere, nowhere, nowhere, (), nowhere, restricted=("trace", "logging"))
    command = server.server_command(nowhere, Endpoints("127.0.0.1", 1, 2, 3), "mark", 1)
    for option in ("--http-restricted-api=", "--grpc-restricted-protocol="):
        (word,) = [word for word in command if word.startswith(option)]
        assert word.removeprefix(option).split(":")[0] == "trace,logging"
