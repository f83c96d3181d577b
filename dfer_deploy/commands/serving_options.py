"""The options for how a server runs the models, shared by ``export`` and ``configure``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from dfer_deploy.bundles.bundle import EXECUTION_PROVIDERS

_NONE = "none"
"""The word with which a user removes an option."""


def _batches(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None or value == _NONE:
        return None if value is None else ()
    try:
        return tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of batches such as 1,2,8, nor {_NONE!r}") from None


def option_text(value: Any) -> str:
    """Return a field of ``ServingOptions`` in the form in which it is typed on the command line."""
    return ",".join(map(str, value)) or _NONE if isinstance(value, tuple) else str(value)


_OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("max_batch_size", "16", {"type": int, "help": "Clips in one execution, at most."}),
    ("instances", "1", {"type": int, "help": "Copies of each model that run at the same time, on every GPU."}),
    ("queue_delay_us", "0", {"type": int, "help": "Microseconds that a request may wait for company in its batch."}),
    (
        "max_queue_size",
        "0",
        {
            "type": int,
            "help": "Requests that may wait for each model; the next one is refused. 0: no limit. With a limit, "
            "Triton may leave the last requests of a burst waiting for up to 0.5 s.",
        },
    ),
    (
        "cuda_graph_batches",
        "1",
        {
            "callback": _batches,
            "metavar": f"1,2,…|{_NONE}",
            "help": "Target tensorrt: batches whose kernels are launched as one recorded CUDA graph.",
        },
    ),
    (
        "execution_provider",
        "cuda",
        {"type": click.Choice(EXECUTION_PROVIDERS), "help": "Target onnxruntime: what runs the graphs on a GPU."},
    ),
)


def serving_options(**shown: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options to a command, which gets the given ones as the dictionary ``serving``.

    Its keys are fields of :class:`~dfer_deploy.bundles.bundle.ServingOptions`, which checks the ranges.

    Args:
        shown: the default that ``--help`` shows, by field, if it differs from the default of a new bundle.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathered(*args: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name, _, _ in _OPTIONS}
            serving = {name: value for name, value in given.items() if value is not None}
            return command(*args, serving=serving, **values)

        for name, default, settings in reversed(_OPTIONS):
            flag = f"--{name.replace('_', '-')}"
            explained = f"{settings['help']}  [default: {shown.get(name, default)}]"
            gathered = click.option(flag, **settings | {"help": explained})(gathered)
        return gathered

    return decorate
