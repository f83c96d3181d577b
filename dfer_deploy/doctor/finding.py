"""One line of the report of ``doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "problem", "not needed"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: name of the check.
        state: ``ok``; ``missing`` if something is absent but can be installed; ``problem`` if something is broken, or
            is needed and cannot be installed here; ``not needed`` on this machine.
        found: what was found.
        advice: what to do, in words.
        command: what to do, as a command to type.
    """

    what: str
    state: State
    found: str
    advice: str = ""
    command: str = ""


Sections = dict[str, list[Finding]]
"""The findings by heading, in the order of the report."""


def first_command(findings: list[Finding]) -> str:
    """Return the command of the first problem, else of the first missing thing; empty if there is none."""
    for state in ("problem", "missing"):
        for finding in findings:
            if finding.state == state and finding.command:
                return finding.command
    return ""
