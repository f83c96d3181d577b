"""How often a server is started again, and when that is given up. Time and server are faked."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dfer_deploy.errors import ServerDiedError, ServerError
from dfer_deploy.triton.restarts import RestartPolicy, keep_serving
from dfer_deploy.triton.server import TritonServer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Server:
    """Runs for the given seconds each time, and ends; a start may fail."""

    def __init__(self, clock: Clock, runs: list[float], failing_starts: tuple[int, ...] = ()) -> None:
        self.clock, self.runs, self.failing = clock, runs, failing_starts
        self.starts = self.stops = 0

    def wait(self) -> ServerDiedError:
        if not self.runs:
            raise KeyboardInterrupt
        self.clock.now += self.runs.pop(0)
        return ServerDiedError("it died")

    def stop(self) -> None:
        self.stops += 1

    def start(self) -> None:
        self.starts += 1
        if self.starts in self.failing:
            raise ServerError("it does not start")


def keep(server: Server, clock: Clock, **changes: Any) -> None:
    policy = RestartPolicy(clock=clock, sleep=clock.sleep, **changes)
    keep_serving(cast(TritonServer, server), policy)


def test_a_server_that_dies_at_once_is_given_up() -> None:
    clock = Clock()
    server = Server(clock, [0.1] * 100)
    with pytest.raises(ServerDiedError) as end:
        keep(server, clock)
    assert (server.starts, server.stops) == (5, 5)
    assert clock.slept == [0, 1, 2, 4, 8]
    assert (end.value.code, end.value.exit_code) == ("server_died", 4)


def test_one_that_dies_now_and_then_is_started_for_ever() -> None:
    clock = Clock()
    server = Server(clock, [100.0] * 50)
    with pytest.raises(KeyboardInterrupt):
        keep(server, clock)
    assert server.starts == 50
    assert max(clock.slept) == 1


def test_a_start_that_fails_counts_and_is_tried_again() -> None:
    clock = Clock()
    server = Server(clock, [1.0, 1.0], failing_starts=(1, 2))
    with pytest.raises(KeyboardInterrupt):
        keep(server, clock)
    assert server.starts == 4
    server = Server(clock, [1.0], failing_starts=tuple(range(1, 100)))
    with pytest.raises(ServerDiedError):
        keep(server, clock)
    assert server.starts == 5
