"""The comparison of a graph's blocks with PyTorch's, and the blocks that must stay fp32: parts of a result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dfer_deploy.specs import Precision, require
from dfer_deploy.verification.bounds import MAX_LOGIT_ERROR, check_between, check_name
from dfer_deploy.verification.limits import ROUNDINGS

SHARE = 0.1
"""A block explains a failure if it changes the logits by at least this share of the largest such change."""

MAX_BLOCKS = 400
"""Largest number of blocks in a result, which may come from an untrusted file. It is three times the number of the
deepest model that a spec allows."""


@dataclass(frozen=True)
class BlockError:
    """The errors of one block against PyTorch, over all clips.

    Attributes:
        block: name of the block; see ``dfer_deploy.bundles.blocks``. The last one is ``classifier``.
        precision: precision of its matrix products.
        own: error of its output for PyTorch's input, relative to what the block adds: ‖Δ‖ / ‖output - input‖.
        rounding: the same error for PyTorch's block with rounded weights and input.
        relative: relative error of its output within the whole graph: ‖Δ‖ / ‖output‖.
        cosine: smallest cosine between a token of that output and PyTorch's token.
        logits: largest change of a logit that this block alone causes, while all others are PyTorch's; None if it was
            not measured or is not finite.

    If a value is NaN or infinite, the error is infinite and the cosine is -1.
    """

    block: str
    precision: Precision
    own: float
    rounding: float
    relative: float
    cosine: float
    logits: float | None

    def check(self) -> None:
        """Refuse what no comparison finds; see ``VerificationResult.check``."""
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
    """The errors of all blocks of both graphs.

    Attributes:
        layers: the blocks in the order of the computation, the classifier last.
        clips: number of clips on which they were compared.
        where: one sentence that explains the failures; empty if ``str`` of this object says enough.
    """

    layers: tuple[BlockError, ...]
    clips: int
    where: str = ""

    def check(self) -> None:
        """Refuse what no comparison finds; see ``VerificationResult.check``."""
        blocks = len(self.layers)
        require(1 <= blocks <= MAX_BLOCKS, f"localisation has {blocks} layers, expected 1 to {MAX_BLOCKS}")
        require(self.clips >= 1, f"the blocks were compared on {self.clips} clips, expected at least 1")
        for layer in self.layers:
            layer.check()

    @property
    def failing(self) -> tuple[BlockError, ...]:
        """The blocks whose own error exceeds their tolerance."""
        return tuple(layer for layer in self.layers if not layer.within)

    @property
    def suspect(self) -> BlockError:
        """The most likely cause: the first failing block that explains the failure, else the most effective one."""
        among = self.failing or self.layers
        most = max(layer.logits or 0.0 for layer in among)
        explaining = (layer for layer in among if (layer.logits or 0.0) >= (SHARE if self.failing else 1) * most)
        return next(explaining)

    @property
    def needed(self) -> dict[Precision, float]:
        """The largest error among the blocks of each precision, in roundings: factors with which all would pass."""
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
    """One export of a bisection.

    Attributes:
        keep_fp32: blocks that stayed fp32.
        failures: sentences of the gate; empty if the gate passed.
    """

    keep_fp32: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Bisection:
    """The outcome of searching the blocks that must stay fp32 in an fp16 export.

    Attributes:
        keep_fp32: the blocks that must stay fp32, in the order of the computation. Empty if all may be fp16. None if
            the gate fails in fp32 too, so that precision is not the reason.
        localisation: the comparison of the first fp16 export's blocks, whose effects define the order of the search.
        trials: all exports, in the order in which they were tried.
        command: the command that exports the checkpoint with these blocks in fp32; None if there is no solution.
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
