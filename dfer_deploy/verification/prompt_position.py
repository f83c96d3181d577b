"""Check that a reference checkpoint was read correctly: PyTorch must reproduce the file's own ``best_acc``.

The file does not contain the position of the contexts in the prompt. A wrong assumption affects the exported model and
PyTorch's model alike, so comparing them cannot reveal it. Only the accuracy that the authors measured can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import spelled
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.specs import PromptPosition

TOLERANCE_POINTS = 0.1
"""Largest difference in percentage points at which a WAR reproduces ``best_acc``."""

_ROUNDING_POINTS = 1e-4
"""Rounding error of ``best_acc`` in percentage points: the authors compute it as a mean of batch accuracies in
float32."""


@dataclass(frozen=True)
class ReadingCheck:
    """The outcome of the check.

    Attributes:
        best_acc: the WAR that the file states, in percent.
        war: PyTorch's WAR with the contexts at ``position``, in percent.
        position: the assumed position of the contexts.
        reproducing: the positions whose WAR is within 0.1 point of ``best_acc``.
    """

    best_acc: float
    war: float
    position: PromptPosition
    reproducing: tuple[PromptPosition, ...]

    @property
    def passed(self) -> bool:
        return self.position in self.reproducing

    def __str__(self) -> str:
        stated = f"the checkpoint states {self.best_acc:.2f} % WAR, PyTorch reaches {self.war:.2f} % with the contexts"
        if self.passed:
            others = [position for position in self.reproducing if position != self.position]
            doubt = f" (this list cannot tell it from {' and '.join(others)})" if others else ""
            return f"{stated} at the {self.position}: reproduced{doubt}"
        if self.reproducing:
            names = " or ".join(self.reproducing)
            options = " or ".join(spelled("prompt_position", name) for name in self.reproducing)
            return f"{stated} at the {self.position}, but {names} reproduces it: export with {options}"
        return (
            f"{stated} at the {self.position}, and that is not reproduced: are class order, clips and frames those "
            f"of its own test list? ({spelled('own_test_list', False)} if this is another list)"
        )


def is_own_test_list(best_acc: float, clips: int) -> bool:
    """Return whether ``best_acc`` is a whole number of hits out of ``clips``, as on the list where it was measured."""
    hits = round(best_acc * clips / 100)
    return abs(100 * hits / clips - best_acc) < _ROUNDING_POINTS


def check_reading(
    logits: Mapping[PromptPosition, Float32], labels: npt.NDArray[np.int64], best_acc: float, position: PromptPosition
) -> ReadingCheck:
    """Compare the WAR at every position with ``best_acc``.

    Args:
        logits: PyTorch's logits [N, C] for each known position of the contexts, which must include ``position``.
        labels: int64 [N].
        best_acc: the stated WAR, in percent.
        position: the position that the export assumed.
    """
    wars = {p: 100 * float(np.mean(answers.argmax(axis=1) == labels)) for p, answers in logits.items()}
    reproducing = tuple(p for p, war in wars.items() if abs(war - best_acc) <= TOLERANCE_POINTS)
    return ReadingCheck(best_acc, wars[position], position, reproducing)
