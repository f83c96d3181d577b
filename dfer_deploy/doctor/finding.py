"""One line of what ``doctor`` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "problem", "not needed"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: ``ok``; ``missing``, not there but to be had; ``problem``, there and not right, or needed and not to be
            had here; ``not needed`` on this machine.
        found: what was seen.
        advice: what to do, in words.
        command: what to do, to type as it stands.
    """

    what: str
    state: State
    found: str
    advice: str = ""
    command: str = ""


Sections = dict[str, list[Finding]]
"""The lines under their headings, in the order of the report."""


def first_command(findings: list[Finding]) -> str:
    """The command of the first finding that is a problem, else of the first that is missing; empty without one."""
    for state in ("problem", "missing"):
        for finding in findings:
            if finding.state == state and finding.command:
                return finding.command
    return ""
