"""The processes of one training: one by default, several if ``torchrun`` started them.

``torchrun --nproc-per-node N -m dfer_deploy train …`` describes the processes in environment variables (PyTorch's
documentation, "torchrun (Elastic Launch)"): ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and the address where they meet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from dfer_deploy.console import stderr, stdout
from dfer_deploy.errors import DferDeployError, TrainingError

T = TypeVar("T")

_TIMEOUT = timedelta(hours=2)
"""Longest wait for another process: the first process evaluates while the others wait. A process that has died is
noticed at once."""

_LOST = ("Connection closed", "Connection reset", "Broken pipe", "Socket Timeout", "Timed out", "gloo", "NCCL")
"""Parts of the messages of a broken connection. gloo raises plain RuntimeErrors."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: number of this process, 0 ≤ rank < world. Only the first one, 0, writes files and prints.
        world: number of processes.
        device: device on which this process computes; also used for sums over all processes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the processes, in float64."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def merged(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the entries of all processes, in the same order in every process."""
        if self.world == 1:
            return dict(values)
        parts: list[dict[str, str]] = [{}] * self.world
        dist.all_gather_object(parts, dict(values))
        return {name: value for part in parts for name, value in part.items()}

    def from_first(self, make: Callable[[], T]) -> T:
        """Call ``make`` in the first process only, and return its result in all processes.

        Raises:
            DferDeployError: the error of ``make``, in every process.
        """
        if self.world == 1:
            return make()
        box: list[T | DferDeployError | None] = [None]
        if self.is_first:
            try:
                box = [make()]
            except DferDeployError as error:
                box = [error]
        dist.broadcast_object_list(box, src=0, device=self.device)
        if isinstance(box[0], DferDeployError):
            raise box[0]
        return box[0]  # type: ignore[return-value]


@contextlib.contextmanager
def training_processes(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started (gloo on a CPU, NCCL on CUDA); without it, return just this one.

    Inside another such context it returns the same processes again.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        DferDeployError: the environment is not torchrun's, the device is absent, or another process does not start or
            ended too early.
    """
    world, rank, local_rank = _number("WORLD_SIZE", 1), _number("RANK", 0), _number("LOCAL_RANK", 0)
    absent = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world > 1 and absent and not dist.is_initialized():
        raise TrainingError(
            f"the environment says WORLD_SIZE={world} and lacks {', '.join(absent)}; start with torchrun, which sets "
            "them all, or unset WORLD_SIZE to train in one process"
        )
    own = _device(device, local_rank if world > 1 else None)
    if world == 1 or dist.is_initialized():
        yield Processes(rank, world, own)
        return
    quiet = stdout.quiet, stderr.quiet
    stdout.quiet = stderr.quiet = rank != 0
    try:
        with _lost_processes():
            if own.type == "cuda":
                torch.cuda.set_device(own)
            dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=_TIMEOUT)
            yield Processes(rank, world, own)
            # Not after an error, because leaving a group can wait for a process that has ended.
            dist.destroy_process_group()
    finally:
        stdout.quiet, stderr.quiet = quiet


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's DistError is a RuntimeError
        if not isinstance(error, dist.DistError) and not any(text in str(error) for text in _LOST):
            raise
        raise TrainingError(
            f"another process of this training ended or cannot be reached ({str(error).splitlines()[0][:200]}); look "
            "at its message, then give the same command again: the run continues from its last state"
        ) from error


def _number(name: str, least: int) -> int:
    """Return a number from the environment; ``least`` if it is not set."""
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise TrainingError(
            f"the environment says {name}={text!r}, expected a number of at least {least}; start with torchrun, or "
            "unset it"
        )
    return int(text)


def _device(name: str, local_rank: int | None) -> torch.device:
    devices = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not devices):
        return torch.device("cpu")
    if not devices:
        raise TrainingError('run.device is "cuda" and PyTorch finds no CUDA device; set it to "auto" or "cpu"')
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= devices:
        raise TrainingError(
            f"torchrun started process {local_rank + 1} on a machine with {devices} CUDA device(s), expected one "
            "process for each; lower --nproc-per-node"
        )
    return torch.device("cuda", local_rank)
