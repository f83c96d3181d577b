"""The blocks of exported graphs compared with PyTorch's, and which of them must stay fp32: part of a result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dfer_deploy.specs import Precision, require
from dfer_deploy.verification.bounds import MAX_LOGIT_ERROR, check_between, check_name
from dfer_deploy.verification.limits import ROUNDINGS

SHARE = 0.1
"""A block explains a failure if it changes the logits by at least this share of the largest such change."""

MAX_BLOCKS = 400
"""Blocks of a result: three times what the deepest model that a spec allows has. Results come from files."""


@dataclass(frozen=True)
class BlockError:
    """One block against PyTorch, over all clips.

    Attributes:
        block: its name; see ``dfer_deploy.bundles.blocks``, and ``classifier``.
        precision: of its matrix products.
        own: error of its output given PyTorch's input, relative to what the block adds: ‖Δ‖ / ‖output - input‖.
        rounding: the same error of PyTorch's block whose weights and input were rounded.
        relative: error of its output in the whole graph, relative: ‖Δ‖ / ‖output‖.
        cosine: smallest cosine between a token of that output and PyTorch's.
        logits: largest change of a logit that this block alone causes, all others being PyTorch's; None where it was
            not measured or is not finite.

    An error is infinite, and the cosine -1, where a value is NaN or infinite.
    """

    block: str
    precision: Precision
    own: float
    rounding: float
    relative: float
    cosine: float
    logits: float | None

    def __post_init__(self) -> None:
        check_name(self.block)
        for name in ("own", "rounding", "relative", "logits"):
            value = getattr(self, name)
            if value is not None and not math.isinf(value):
                check_between(f"{name} of the block {self.block!r}", value, MAX_LOGIT_ERROR)

    @property
    def tolerance(self) -> float:
        return ROUNDINGS[self.precision] * self.rounding

    @property
    def within(self) -> bool:
        return self.own <= self.tolerance


@dataclass(frozen=True)
class BlockComparison:
    """All blocks of both graphs.

    Attributes:
        layers: in the order of the computation, the classifier last.
        clips: on how many clips they were compared.
        where: what they say about the failures, in a sentence; empty for what they say by themselves (``str``).
    """

    layers: tuple[BlockError, ...]
    clips: int
    where: str = ""

    def __post_init__(self) -> None:
        blocks = len(self.layers)
        require(1 <= blocks <= MAX_BLOCKS, f"localisation has {blocks} layers, expected 1 to {MAX_BLOCKS}")

    @property
    def failing(self) -> tuple[BlockError, ...]:
        """The blocks whose own error leaves its tolerance."""
        return tuple(layer for layer in self.layers if not layer.within)

    @property
    def suspect(self) -> BlockError:
        """The block to blame: the first failing one that explains the failure, else what changes the logits most."""
        among = self.failing or self.layers
        most = max(layer.logits or 0.0 for layer in among)
        explaining = (layer for layer in among if (layer.logits or 0.0) >= (SHARE if self.failing else 1) * most)
        return next(explaining)

    @property
    def needed(self) -> dict[Precision, float]:
        """The largest error of the blocks of each precision, in roundings: with these all would pass."""
        errors: dict[Precision, float] = {}
        for layer in self.layers:
            roundings = layer.own / max(layer.rounding, 1e-30)
            errors[layer.precision] = max(errors.get(layer.precision, 0.0), roundings)
        return errors

    def __str__(self) -> str:
        suspect = self.suspect
        if not self.failing:
            none = "no block alone leaves its tolerance"
            if suspect.logits is None:
                return none
            return f"{none}; most error comes from {suspect.block}, which changes a logit by {suspect.logits:.2g}"
        what = f"{suspect.block} leaves its tolerance: given right input "
        if math.isinf(suspect.own):
            what += "it answers NaN or infinity"
        else:
            what += (
                f"its error is {suspect.own:.2g} of what it adds, rounding to {suspect.precision} explains at most "
                f"{suspect.tolerance:.2g}"
            )
        before = self.layers.index(suspect)
        slighter = [layer.block for layer in self.layers[:before] if not layer.within]
        return what + (f" ({', '.join(slighter)} before it too, with far less effect)" if slighter else "")


@dataclass(frozen=True)
class Trial:
    """One export that was tried.

    Attributes:
        keep_fp32: blocks that stayed fp32.
        failures: what the gate said, empty if it held.
    """

    keep_fp32: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Bisection:
    """Which blocks must stay fp32 in an fp16 export.

    Attributes:
        keep_fp32: the blocks that must stay fp32, in the order of the computation; empty if all may be fp16; None if
            the gate fails in fp32 too, so that precision is not the reason.
        localisation: the blocks of the first fp16 export, whose effects decided the order.
        trials: all exports, in the order in which they were tried.
        command: exports the checkpoint so, where there is an answer.
    """

    keep_fp32: tuple[str, ...] | None
    localisation: BlockComparison
    trials: tuple[Trial, ...]
    command: str | None = None

    def __str__(self) -> str:
        tried = f"{len(self.trials)} exports tried"
        if self.keep_fp32 is None:
            return f"with all blocks in fp32 the gate fails too, so precision is not the reason ({tried})"
        if not self.keep_fp32:
            return f"no block must stay fp32: exported in fp16, the gate holds ({tried})"
        return f"{', '.join(self.keep_fp32)} must stay fp32, all others may be fp16 ({tried})"
