"""How long and how often a client tries."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dfer_deploy.client.calls import Attempt, Call, Flow, Pause
from dfer_deploy.client.failures import CallError
from dfer_deploy.specs import require

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

DEFAULT_DEADLINE_S = 60.0
DEFAULT_RETRIES = 20
"""About 16 s of pauses: longer than a server's restart."""

CONNECT_RETRIES = 5
"""At most, about 1.6 s of pauses, where nothing was ever answered: an address is mistyped more often than a server is
just being started."""

_LEAST_S = 1e-6
"""An attempt has some time, so that it is the libraries that say that it is over."""


@dataclass(frozen=True)
class Patience:
    """The limits of every question.

    Attributes:
        deadline_s: for the question with all its attempts and pauses.
        retries: attempts after the first.
        clock: seconds, monotonic.
        uniform: a random number between two.
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

    def question(self) -> Question:
        """Starts the clock."""
        return Question(self, self.clock() + self.deadline_s)


class Question:
    """What is left of the patience with one question."""

    def __init__(self, patience: Patience, end: float) -> None:
        self._patience, self._end, self._failures = patience, end, 0

    def attempt(self, call: Call) -> Flow[Any]:
        """One attempt, with the time that is left."""
        left = self._end - self._patience.clock()
        return (yield Attempt(call, max(left, _LEAST_S), self._patience.deadline_s))

    def pause_after(self, error: CallError) -> Flow[None]:
        """The pause before the next attempt: exponential, with full jitter, so that many clients do not come at once.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog.

        Raises:
            CallError: ``error`` itself, if there is no attempt or no time left.
        """
        pause = self._patience.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failures))
        self._failures += 1
        if self._failures > self._patience.retries or self._patience.clock() + pause >= self._end:
            raise error
        yield Pause(pause)

    def answered(self, call: Call) -> Flow[Any]:
        """The reply to ``call``, after as many attempts as it takes."""
        while True:
            try:
                return (yield from self.attempt(call))
            except CallError as error:  # noqa: PERF203 - a network is slower
                if not error.retryable:
                    raise
                yield from self.pause_after(error)
