"""What is made of perf_analyzer's numbers and Triton's statistics."""

from collections import Counter
from pathlib import Path

import pytest
from throughput import Level, SharingTriton, clips_per_execution, levels, saturation_point, summary

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
    result = summary([10.0, 20.0], {level: [load(8.0), load(18.0)]}, {level: Counter({2: 3})})
    (row,) = result["levels"]
    assert (row["queue_ms"], row["execution_ms"], row["else_ms"]) == (2.0, 5.0, 3.0)
    assert row["clips_per_execution"] == 2
    assert row["against_in_process"]["rounds"] == pytest.approx([0.8, 0.9])
    assert result["saturation"]["gRPC"]["server_adds"] == "15.0% of the throughput (10.0% to 20.0%)"


def test_the_server_of_the_benchmark_leaves_nothing_but_shared_memory_open() -> None:
    nowhere = Path("/nowhere")
    server = SharingTriton(nowhere, nowhere, nowhere, nowhere, (), nowhere)
    command = server.server_command(nowhere, Endpoints("127.0.0.1", 1, 2, 3), "mark", 1)
    for option in ("--http-restricted-api=", "--grpc-restricted-protocol="):
        (word,) = [word for word in command if word.startswith(option)]
        assert word.removeprefix(option).split(":")[0] == "model-repository,trace,logging"
