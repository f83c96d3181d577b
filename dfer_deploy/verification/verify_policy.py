"""The limits of ``verify`` that a release must keep: the table ``[verify]`` of a policy file."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from dfer_deploy.errors import spelled
from dfer_deploy.runtimes.available import Runtime
from dfer_deploy.specs import require
from dfer_deploy.verification.bounds import MAX_LOGIT_ERROR, MAX_POINTS
from dfer_deploy.verification.limits import Limits


def require_limits(policy: Any, where: str) -> None:
    """Check that the numbers of a policy's dataclass are valid limits.

    Args:
        policy: the dataclass.
        where: name of its table in the file, for messages.

    Raises:
        DferDeployError: a number is negative or not finite.
    """
    for name, value in vars(policy).items():
        require(
            value is None or isinstance(value, tuple) or (math.isfinite(value) and value >= 0),
            f"{where}.{name} is {value}, expected a number of at least 0",
        )


@dataclass(frozen=True)
class VerifyPolicy:
    """Limits of ``verify``. A limit that is None keeps the default of the precision.

    Attributes:
        margin: margin of UAR and WAR in percentage points, in (0, 100].
        max_logit_error: largest difference of a logit of the whole model.
        max_flip_rate: largest share of clips whose answer changes, in (0, 1].
        max_recall_drop: largest fall of the recall of a class, in percentage points.
        max_calibration_rise: largest rise of the expected calibration error, in percentage points.
        require: ways of serving that must be compared, named as for ``--runtime``.
    """

    margin: float | None = None
    max_logit_error: float | None = None
    max_flip_rate: float | None = None
    max_recall_drop: float | None = None
    max_calibration_rise: float | None = None
    require: tuple[Literal[Runtime, "triton"], ...] = ()

    def __post_init__(self) -> None:
        require_limits(self, "verify")
        require(self.margin != 0, "verify.margin is 0, expected more: no number of clips proves two models the same")
        require((self.margin or 0) <= MAX_POINTS, f"verify.margin is {self.margin}, expected at most {MAX_POINTS:g}")
        require(
            (self.max_logit_error or 0) <= MAX_LOGIT_ERROR,
            f"verify.max_logit_error is {self.max_logit_error}, expected at most {MAX_LOGIT_ERROR:g}",
        )
        require(
            self.max_flip_rate != 0,
            "verify.max_flip_rate is 0, which no number of clips proves: without a single flip among n clips the bound "
            "is about 3 / n; give at least that, for example 0.003 for 1000 clips",
        )
        require((self.max_flip_rate or 0) <= 1, f"verify.max_flip_rate is {self.max_flip_rate}, expected at most 1")

    def check_compared(self, compared: Collection[str], left_out: Collection[str]) -> None:
        """Refuse to omit what the policy requires, before anything is compared.

        Args:
            compared: the ways of serving to compare, named as for ``--runtime``.
            left_out: reasons why something is omitted.

        Raises:
            DferDeployError: a required way of serving is not among them.
        """
        for name in self.require:
            reasons = "".join(f" ({reason})" for reason in left_out)
            require(
                name in compared,
                f"the policy requires {name}, but only {', '.join(compared)} would be compared{reasons}; omit "
                f"{spelled('in_process')} and {spelled('runtimes')}, run it where that can be, or take it out of "
                "the policy",
            )

    def limits(self, default: Limits) -> Limits:
        """Return the default limits, replaced by those that the policy gives."""
        given: dict[str, Any] = {
            "points": self.margin,
            "logits": self.max_logit_error,
            "flips": self.max_flip_rate,
            "recall_drop": self.max_recall_drop,
            "calibration_rise": self.max_calibration_rise,
        }
        return replace(default, **{name: value for name, value in given.items() if value is not None})
