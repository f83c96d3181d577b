"""What is tried again, when, and when not any more. Time is faked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dfer_deploy.client.calls import Backoff, ListModels, Send
from dfer_deploy.client.retry_policy import FIRST_BACKOFF_S, MAX_BACKOFF_S, RetryPolicy
from dfer_deploy.errors import (
    CallError,
    DeadlineExceededError,
    ModelNotFoundError,
    QueueFullError,
    RequestRefusedError,
    ServerUnavailableError,
    SettingError,
)


class Network:
    """Performs steps: every attempt takes ``attempt_s`` and fails as ``failures`` says, then the answer comes."""

    def __init__(self, failures: Sequence[type[CallError]], attempt_s: float = 0.0) -> None:
        self._failures, self._attempt_s = list(failures), attempt_s
        self.now, self.backoffs, self.timeouts = 100.0, [], []

    def ask(self, deadline_s: float, retries: int, share: float = 1.0) -> str:
        policy = RetryPolicy(deadline_s, retries, lambda: self.now, lambda low, high: low + share * (high - low))
        steps = policy.start().response_to(ListModels())
        try:
            step = next(steps)
            while True:
                if isinstance(step, Backoff):
                    self.backoffs.append(step.seconds)
                    self.now += step.seconds
                    step = steps.send(None)
                    continue
                assert isinstance(step, Send)
                assert step.deadline_s == deadline_s
                self.timeouts.append(step.timeout_s)
                self.now += self._attempt_s
                step = steps.throw(self._failures.pop(0)("it failed")) if self._failures else steps.send("answer")
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize("kind", [ServerUnavailableError, QueueFullError])
def test_what_may_pass_is_tried_again(kind: type[CallError]) -> None:
    network = Network([kind] * 3)
    assert network.ask(60, 3) == "answer"
    assert network.backoffs == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]


@pytest.mark.parametrize("kind", [RequestRefusedError, DeadlineExceededError, ModelNotFoundError])
def test_what_would_fail_again_is_not_tried_again(kind: type[CallError]) -> None:
    network = Network([kind])
    with pytest.raises(kind):
        network.ask(60, 100)
    assert len(network.timeouts) == 1


def test_no_more_retries_than_allowed() -> None:
    network = Network([ServerUnavailableError] * 3)
    with pytest.raises(CallError):
        network.ask(60, 2)
    assert len(network.timeouts) == 3


def test_backoffs_are_drawn_between_zero_and_a_limit_that_grows_up_to_a_bound() -> None:
    network = Network([ServerUnavailableError] * 8)
    network.ask(60, 8, share=0.5)
    assert network.backoffs[0] == FIRST_BACKOFF_S / 2
    assert network.backoffs[-1] == MAX_BACKOFF_S / 2


def test_attempts_and_backoffs_share_one_deadline() -> None:
    network = Network([ServerUnavailableError] * 100, attempt_s=1.0)
    with pytest.raises(CallError):
        network.ask(10, 100)
    assert network.now - 100 <= 10 + 1
    assert network.timeouts[0] == 10
    assert network.timeouts == sorted(network.timeouts, reverse=True)
    assert all(timeout_s > 0 for timeout_s in network.timeouts)


@pytest.mark.parametrize(
    ("deadline_s", "retries"), [(0, 1), (float("nan"), 1), (1e9, 1), (None, 1), ("a", 1), (1, -1), (1, 1.5)]
)
def test_numbers_out_of_range(deadline_s: Any, retries: Any) -> None:
    with pytest.raises(SettingError, match="expected"):
        RetryPolicy(deadline_s, retries)
