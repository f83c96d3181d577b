"""The choice of the runtimes that ``verify`` and ``bench`` compare."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.console import step
from dfer_deploy.errors import SettingError, spelled
from dfer_deploy.runtimes.available import RUNTIMES, Runtime, open_predictor, usual_runtimes
from dfer_deploy.runtimes.predictor import Predictor
from dfer_deploy.specs import require

TRITON = "triton"
"""The name of a Triton server among the runtimes that a user can choose."""


@dataclass(frozen=True)
class Contestants:
    """The runtimes to compare.

    Attributes:
        runtimes: runtimes of this process.
        served: whether a server is compared too.
        left_out: what the bundle's target offers but is not compared, with the reason.
    """

    runtimes: tuple[Runtime, ...]
    served: bool
    left_out: dict[str, str]


def check_runtimes(chosen: Sequence[str]) -> None:
    """Refuse a runtime that does not exist.

    Raises:
        DferDeployError: one is neither of ``RUNTIMES`` nor ``triton``.
    """
    for name in chosen:
        known = (*RUNTIMES, TRITON)
        require(name in known, f"the runtime {name!r} does not exist; expected one of {', '.join(known)}")


def choose_contestants(
    bundle: Bundle,
    chosen: Sequence[str],
    *,
    url: str | None = None,
    in_process: bool = False,
    host_code_allowed: bool = False,
) -> Contestants:
    """Return the user's choice, or everything that can be compared on this machine.

    Args:
        bundle: an opened bundle.
        chosen: names from ``RUNTIMES``, and ``triton``; empty for everything.
        url: address of a running server; None to start one.
        in_process: compare without a server.
        host_code_allowed: let TensorRT execute the code that version-compatible engines carry.

    Raises:
        DferDeployError: the options contradict each other, or the bundle has no engines that could be served.
    """
    if chosen:
        if url and TRITON not in chosen:
            raise SettingError(
                f"{spelled('url')} names a server, but {spelled('runtimes')} omits it; "
                f"add {spelled('runtimes', (TRITON,))}"
            )
        if in_process and TRITON in chosen:
            raise SettingError(
                f"{spelled('in_process')} omits the server that {spelled('runtimes')} asks for; choose one"
            )
        runtimes = tuple(runtime for runtime in RUNTIMES if runtime in chosen)
        return Contestants(runtimes, TRITON in chosen, {})
    usual = usual_runtimes(bundle, host_code_allowed=host_code_allowed)
    served = not in_process
    left_out = {}
    if bundle.manifest.target == "tensorrt":
        if usual.no_tensorrt:
            left_out["TensorRT in this process"] = usual.no_tensorrt
        if served and url is None and bundle.engines is None:
            served = False
            left_out["Triton"] = usual.no_tensorrt
    return Contestants(usual.runtimes, served, left_out)


def open_predictors(
    stack: ExitStack, bundle: Bundle, contestants: Contestants, *, host_code_allowed: bool
) -> list[Predictor]:
    """Open the predictors of this process, in the order of ``contestants.runtimes``."""
    predictors: list[Predictor] = []
    for runtime in contestants.runtimes:
        with step(f"load the graphs in {runtime}"):
            predictor = open_predictor(runtime, bundle, host_code_allowed=host_code_allowed)
            predictors.append(stack.enter_context(predictor))
    return predictors
