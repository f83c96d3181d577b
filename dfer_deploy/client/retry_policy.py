"""The limits of a client's requests: deadline, retries and exponential backoff."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dfer_deploy.client.calls import Backoff, Call, Send, Steps
from dfer_deploy.errors import CallError
from dfer_deploy.specs import require

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
"""Limits the wait between two attempts, in seconds, so that a client soon reaches a server that has restarted."""

DEFAULT_DEADLINE_S = 60.0
DEFAULT_RETRIES = 20
"""Attempts after the first one. They add up to about 16 s of backoff, which is longer than a server's restart."""

CONNECT_RETRIES = 5
"""Limits the retries of a connection to about 1.6 s of backoff, because a mistyped address is more likely than a server
that is still starting."""

_MIN_TIMEOUT_S = 1e-6
"""The shortest timeout of an attempt, in seconds. It is positive, so that the library reports an expired deadline."""


@dataclass(frozen=True)
class RetryPolicy:
    """The limits of every request.

    Attributes:
        deadline_s: seconds for the request with all its retries and backoff, more than 0 and at most 86400.
        retries: attempts after the first one, 0 to 1000.
        clock: a monotonic clock, in seconds.
        uniform: draws a random number between two others.

    Raises:
        DferDeployError: a limit is out of range.
    """

    deadline_s: float
    retries: int
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = field(default=random.uniform)

    def __post_init__(self) -> None:
        require(
            isinstance(self.deadline_s, int | float) and 0 < self.deadline_s <= 86_400,
            f"the deadline is {self.deadline_s} s, expected more than 0 and at most 86400",
        )
        require(
            isinstance(self.retries, int) and 0 <= self.retries <= 1000,
            f"the number of retries is {self.retries}, expected a whole number from 0 to 1000",
        )

    def start(self) -> RetryState:
        """Start the clock of one request."""
        return RetryState(self, self.clock() + self.deadline_s)


class RetryState:
    """The time and the attempts that one request has left."""

    def __init__(self, policy: RetryPolicy, end: float) -> None:
        self._policy, self._end, self._failures = policy, end, 0

    def send(self, call: Call) -> Steps[Any]:
        """Send the call once, with the time that is left as its timeout."""
        left = self._end - self._policy.clock()
        return (yield Send(call, max(left, _MIN_TIMEOUT_S), self._policy.deadline_s))

    def back_off(self, error: CallError) -> Steps[None]:
        """Wait before the next attempt: exponentially, with full jitter to spread the requests of many clients.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog.

        Raises:
            CallError: ``error`` itself, if the retries or the deadline are used up.
        """
        seconds = self._policy.uniform(0, min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2**self._failures))
        self._failures += 1
        if self._failures > self._policy.retries or self._policy.clock() + seconds >= self._end:
            raise error
        yield Backoff(seconds)

    def response_to(self, call: Call) -> Steps[Any]:
        """Send ``call`` until it succeeds, and return its response.

        Raises:
            CallError: the error is not retryable, or the retries or the deadline are used up.
        """
        while True:
            try:
                return (yield from self.send(call))
            except CallError as error:  # noqa: PERF203 - a network is slower
                if not error.retryable:
                    raise
                yield from self.back_off(error)
