"""In which order configurations are served, and which executions count as theirs; with a server that only counts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import clips_of, tiny_spec

from dfer_deploy.bundles.bundle import ServingOptions
from dfer_deploy.console import progress_bar
from dfer_deploy.measurement import trials
from dfer_deploy.specs import contract_for
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.perf_analyzer import LoadResult


def test_candidates_go_there_and_back_and_only_their_own_executions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[int] = []
    executed = Counter({1: 1000})  # before anything that is measured

    @contextlib.contextmanager
    def serve(serving: ServingOptions) -> Iterator[str]:
        served.append(serving.instances)
        yield "grpc://nowhere:1"

    def load(*arguments: Any, requests: int) -> tuple[LoadResult]:
        executed[2] += requests
        fields = [field.name for field in dataclasses.fields(LoadResult)]
        return (LoadResult(**dict.fromkeys(fields, 1.0) | {"concurrency": 2}),)

    monkeypatch.setattr(trials, "measure_load", load)
    monkeypatch.setattr(trials, "executed_batches", lambda url, model: executed.copy())
    nowhere = Path("/nowhere")
    environment = TritonEnvironment(nowhere, nowhere, nowhere, nowhere, (), nowhere)
    options = [ServingOptions(max_batch_size=16, instances=instances) for instances in (1, 2, 3)]
    with progress_bar() as bar:
        task = bar.add_task("", total=1)
        measured = trials.Trials(
            serve, environment, contract_for(tiny_spec()), clips_of(1), (2,), 3, bar, task, {2: 50}
        ).measure("what", options)
    assert served == [1, 2, 3, 3, 2, 1, 1, 2, 3]
    for candidate in measured:
        (level,) = candidate.loads
        assert len(level.rounds) == 3
        # Not the warm-up's, nor those of other candidates: three rounds of 50 requests.
        assert all(
            {size: count for size, count in of_one.items() if count} == {2: 150} for of_one in level.batches.values()
        )
