"""``dfer-deploy doctor``"""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

import click
from rich.text import Text

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.commands.options import json_option
from dfer_deploy.console import stdout, step
from dfer_deploy.doctor.finding import Finding, Sections, first_command
from dfer_deploy.doctor.machine import examine_machine, machine_findings
from dfer_deploy.doctor.needs import bundle_findings, is_able, next_command
from dfer_deploy.errors import BundleError, ExitCode
from dfer_deploy.files import write_json

_STYLES = {"ok": "green", "missing": "yellow", "problem": "red", "not needed": "dim"}
"""Colours of the states."""

_INDENT = 29
"""Columns before the text of a finding: two spaces, the state and the name."""


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def doctor(ctx: click.Context, bundle: Path | None, json_file: Path | None) -> None:
    """Report what this machine can do, and whether that is what BUNDLE needs.

    Nothing is installed or changed. The last line is the next command to type. The exit code is 0 without BUNDLE, or if
    this machine can do what BUNDLE needs, and 1 if it cannot.
    """
    opened = None if bundle is None else _opened(bundle)
    with step("look at this machine"):
        machine = examine_machine()
    sections = machine_findings(machine)
    able = None
    if opened is None:
        following = first_command(sections["Python"]) or "dfer-deploy demo"
    else:
        with step(f"look at {opened.path}"):
            needs = bundle_findings(opened, machine)
        sections[f"what {opened.path} needs"] = needs
        able, following = is_able(needs), next_command(opened, machine, needs)
    _print(sections)
    stdout.print()
    if able is not None:
        stdout.print(f"This machine {'can' if able else 'cannot'} do what the bundle needs.")
    stdout.print(f"next: {following}", markup=False)
    if json_file:
        lines = {title: [dataclasses.asdict(finding) for finding in findings] for title, findings in sections.items()}
        write_json(json_file, {"sections": lines, "able": able, "next": following})
    if able is False:
        ctx.exit(ExitCode.GATE_FAILED)


def _opened(path: Path) -> Bundle:
    try:
        return open_bundle(path, check_files=False)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _print(sections: Sections) -> None:
    for title, findings in sections.items():
        stdout.print(Text(f"\n{title}", style="bold"))
        for finding in findings:
            _print_finding(finding)


def _print_finding(finding: Finding) -> None:
    """Print a finding in the terminal's width: state, name, text and advice, then the command."""
    head = Text(f"  {finding.state:<11}", style=_STYLES[finding.state])
    head.append(f"{finding.what:<16}", style="default")
    width = max(20, stdout.width - _INDENT)
    found, *more = textwrap.wrap(finding.found, width) or [""]
    head.append(found, style="default")
    stdout.print(head)
    for line in (*more, *textwrap.wrap(finding.advice and f"→ {finding.advice}", width, subsequent_indent="  ")):
        stdout.print(" " * _INDENT + line, markup=False)
    # Never wrapped, so that it can be copied.
    if finding.command:
        stdout.print(" " * _INDENT + f"$ {finding.command}", markup=False)
