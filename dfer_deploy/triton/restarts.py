"""Serving that goes on: a server that ends by itself is started again, with growing pauses, a few times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from dfer_deploy.console import warn
from dfer_deploy.errors import ServerDiedError, ServerError
from dfer_deploy.triton.server import TritonServer


@dataclass(frozen=True)
class RestartPolicy:
    """When a server is started again.

    Attributes:
        restarts: largest number of restarts within ``window_s``.
        window_s: seconds after which a restart no longer counts.
        first_backoff_s: seconds before the second restart of a window; the first is at once, and each further one waits
            twice as long.
        clock: a monotonic clock, in seconds.
        sleep: waits for a number of seconds.
    """

    restarts: int = 5
    window_s: float = 120.0
    first_backoff_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = field(default=time.sleep)


def keep_serving(server: TritonServer, policy: RestartPolicy) -> NoReturn:
    """Wait until a started server ends by itself, and start it again on the same ports.

    Args:
        server: a started server.
        policy: how often, and after what time.

    Raises:
        ServerDiedError: the server ended more often than the policy allows.
    """
    recent: list[float] = []
    while True:
        _start_again(server, policy, recent, server.wait())


def _start_again(server: TritonServer, policy: RestartPolicy, recent: list[float], error: ServerError) -> None:
    """Start the server, again if its start fails; ``recent`` holds the times of the restarts, which this adds to."""
    while True:
        now = policy.clock()
        recent[:] = [moment for moment in recent if now - moment < policy.window_s]
        if len(recent) == policy.restarts:
            raise ServerDiedError(
                f"{error}; it was restarted {policy.restarts} times within {policy.window_s:g} s and is given up"
            ) from error
        backoff_s = policy.first_backoff_s * 2 ** (len(recent) - 1) if recent else 0.0
        recent.append(now)
        when = f"in {backoff_s:g} s" if backoff_s else "now"
        warn(f"{error}; it is restarted {when} ({len(recent)} of {policy.restarts} times in {policy.window_s:g} s)")
        server.stop()
        policy.sleep(backoff_s)
        try:
            server.start()
        except ServerError as failure:
            error = failure
        else:
            warn(f"the server answers again after {policy.clock() - now:.1f} s")
            return
