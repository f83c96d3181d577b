"""Bounds for the numbers and names of a result. Results are read from files that may come from anywhere."""

from __future__ import annotations

from typing import Any

from dfer_deploy.specs import require

MAX_POINTS = 100.0
"""Largest difference of two scores. Scores are percentages, so they cannot differ by more."""

MAX_LOGIT_ERROR = 1e39
"""Largest difference of two logits. Two finite float32 numbers cannot differ by more."""

ROUNDING = 1e-4
"""By how much a sum of shares may leave its range, because shares are rounded."""


def check_name(name: str) -> None:
    """Refuse a name that cannot be displayed.

    Raises:
        DferDeployError: the name is empty or not printable.
    """
    require(bool(name.strip()) and name.isprintable(), f"the name {name!r} is empty or not printable")


def check_between(what: str, value: Any, most: float) -> None:
    """Refuse a value that is not a number from 0 to ``most``.

    Raises:
        DferDeployError: the value is outside the range; the message begins with ``what``.
    """
    require(is_between(value, 0, most), f"{what} is {value!r}, expected a number from 0 to {most:g}")


def is_between(value: Any, least: float, most: float) -> bool:
    """Return whether a value is a number in the range. NaN, and integers that no float can hold, are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
