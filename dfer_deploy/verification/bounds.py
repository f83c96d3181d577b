"""What a number or a name of a result can be: results are read from files, which may come from anywhere."""

from __future__ import annotations

from typing import Any

from dfer_deploy.specs import require

MAX_POINTS = 100.0
"""Scores are in percent: no two of them differ by more."""

MAX_LOGIT_ERROR = 1e39
"""No two finite float32 numbers differ by more."""

ROUNDING = 1e-4
"""By how much a sum of shares may leave its range."""


def check_name(name: str) -> None:
    """Refuse a name that cannot be shown.

    Raises:
        DferDeployError: it is empty or not printable.
    """
    require(bool(name.strip()) and name.isprintable(), f"the name {name!r} is empty or not printable")


def check_between(what: str, value: Any, most: float) -> None:
    """Refuse what is not a number from 0 to ``most``.

    Raises:
        DferDeployError: it is not one; the message begins with ``what``.
    """
    require(is_between(value, 0, most), f"{what} is {value!r}, expected a number from 0 to {most:g}")


def is_between(value: Any, least: float, most: float) -> bool:
    """Return whether a value is a number in the range: not NaN, and not an integer that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
