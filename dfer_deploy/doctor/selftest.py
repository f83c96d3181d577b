"""Run steps on an untested machine one after the other, and write a report of what happened.

A step that fails, crashes or hangs is recorded, and the steps that do not need it still run. A step that may end its
process, as GPU libraries can, is a command in a separate process.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfer_deploy.console import stderr, step
from dfer_deploy.doctor.child import ending
from dfer_deploy.errors import DferDeployError, WriteError
from dfer_deploy.files import atomic_file, temporary_folder
from dfer_deploy.machine.children import own_environment

STEP_TIMEOUT_S = 3600.0
"""Longest duration of one command. Building engines at the highest optimisation level takes tens of minutes."""

_END_TIMEOUT_S = 30.0
"""Longest wait for an interrupted command, which first ends its server."""

_OUTPUT_CHARACTERS = 20_000
"""Largest number of characters of a command's output that are kept; the end is the most useful."""

_TITLE = "# dfer-deploy selftest --gpu"
"""First line of a report, by which ``check_report`` recognises one."""

State = Literal["done", "failed", "skipped", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a successful step: a value for JSON, and the printed output."""

    result: Any
    output: str = ""


class StepError(Exception):
    """A failed step: one sentence, with what it printed and measured before it failed."""

    def __init__(self, message: str, output: str = "", result: Any = None) -> None:
        super().__init__(message)
        self.output = output
        self.result = result


@dataclass(frozen=True)
class Step:
    """One step of a self-test.

    Attributes:
        name: name in the report.
        run: function that runs it. Its argument is the outcomes of the successful steps, by name.
        needs: steps that must have succeeded; otherwise this one is skipped.
        unless: a step whose success makes this one unnecessary.
    """

    name: str
    run: Callable[[Mapping[str, Outcome]], Outcome]
    needs: tuple[str, ...] = ()
    unless: str | None = None


@dataclass(frozen=True)
class StepRecord:
    """The record of a step.

    Attributes:
        name: name of the step.
        state: how the step ended.
        seconds: its duration.
        message: why it did not succeed; empty if it did.
        result: what it measured, for JSON.
        output: what it printed, or the traceback of a bug.
    """

    name: str
    state: State
    seconds: float
    message: str = ""
    result: Any = None
    output: str = ""


def run_steps(steps: Sequence[Step], on_record: Callable[[list[StepRecord]], None]) -> list[StepRecord]:
    """Run all steps in turn, whatever happens to each.

    Args:
        steps: steps with different names.
        on_record: is called with all records after every step, so that the report survives a crash of the machine.

    Raises:
        KeyboardInterrupt: a step was interrupted; it was recorded first.
    """
    outcomes: dict[str, Outcome] = {}
    records: list[StepRecord] = []
    for wanted in steps:
        missing = [name for name in wanted.needs if name not in outcomes]
        if missing or wanted.unless in outcomes:
            reason = f"{missing[0]} did not go well" if missing else f"{wanted.unless} went well"
            stderr.print(f"– {wanted.name} [dim](skipped: {reason})[/]")
            records.append(StepRecord(wanted.name, "skipped", 0.0, reason))
        else:
            records.append(_run(wanted, outcomes))
        on_record(records)
        if records[-1].state == "interrupted":
            raise KeyboardInterrupt
    return records


def _run(wanted: Step, outcomes: dict[str, Outcome]) -> StepRecord:
    state: State = "failed"
    message, result, output = "", None, ""
    start = time.perf_counter()
    try:
        with step(wanted.name):
            outcome = wanted.run(outcomes)
    except KeyboardInterrupt:
        state = "interrupted"
    except StepError as error:
        message, output, result = str(error), error.output, error.result
    except DferDeployError as error:
        message = str(error)
    except Exception as error:
        message, output = f"{type(error).__name__}: {error}", traceback.format_exc()
    else:
        state, result, output = "done", outcome.result, outcome.output
        outcomes[wanted.name] = outcome
    if message:
        stderr.print(f"  {message}", markup=False)
    return StepRecord(wanted.name, state, time.perf_counter() - start, message, result, output)


def run_command(*arguments: str | Path, accepted: Sequence[int] = (0,), timeout_s: float = STEP_TIMEOUT_S) -> Outcome:
    """Run ``dfer-deploy ARGUMENTS --json …`` in a separate process.

    Args:
        arguments: arguments of the command.
        accepted: exit codes that mean success.
        timeout_s: seconds after which it is ended.

    Returns:
        The JSON that it wrote, and the text that it printed.

    Raises:
        StepError: it ended with another exit code, crashed, or took too long.
    """
    with temporary_folder("dfer-deploy-selftest-") as folder:
        json_file = folder / "result.json"
        command = [sys.executable, "-m", "dfer_deploy", *map(str, arguments), "--json", str(json_file)]
        returncode, output = run_process(command, timeout_s=timeout_s)
        result = None
        with contextlib.suppress(OSError, ValueError):
            result = json.loads(json_file.read_text(encoding="utf-8"))
    if returncode not in accepted:
        raise StepError(f"dfer-deploy {arguments[0]} {ending(returncode)}: {_reason(output)}", output, result)
    return Outcome(result, output)


def run_process(command: Sequence[str], *, timeout_s: float = STEP_TIMEOUT_S) -> tuple[int, str]:
    """Run a command to its end; return its exit code (negative for a signal) and both outputs, joined.

    Raises:
        StepError: it cannot be started, or did not end in time.
    """
    try:
        process = subprocess.Popen(
            command, env=own_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise StepError(f"{command[0]} cannot be started ({error.strerror})") from error
    with process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise StepError(f"it did not end within {timeout_s:g} s", _rest(process)) from None
        except BaseException:
            # Ctrl-C has reached the command too, which ends its server first.
            _rest(process)
            raise
    return process.returncode, output


def _rest(process: subprocess.Popen[str]) -> str:
    """Return the remaining output of an ending process; kill it if it does not end."""
    try:
        output, _ = process.communicate(timeout=_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return output


def _reason(output: str) -> str:
    """Return the command's own error sentence, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("Error: ", "failed: "))]
    return (said or lines or ["it printed nothing"])[-1].removeprefix("Error: ")


def check_report(path: Path) -> None:
    """Raise ``DferDeployError`` if ``path`` is a file that is not a report and would be replaced."""
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            start = file.read(len(_TITLE))
        if start not in (b"", _TITLE.encode()):
            raise WriteError(f"{path} exists and is not a report of selftest; name another file with -o")


def write_selftest_report(
    path: Path, machine: Mapping[str, Any], records: Sequence[StepRecord], json_file: Path | None = None
) -> None:
    """Write a report as Markdown with a JSON block at its end, without the user's home folder and passwords.

    Args:
        path: path of the report.
        machine: what is known about the machine.
        records: records of the steps.
        json_file: file for the content of the JSON block, or None.

    Raises:
        DferDeployError: a file cannot be written.
    """
    lines = [_TITLE, "", *(f"- {what}: {value}" for what, value in machine.items())]
    lines += ["", "| step | | seconds | |", "|---|---|---:|---|"]
    lines += [f"| {r.name} | {r.state} | {r.seconds:.1f} | {_cell(r.message)} |" for r in records]
    for record in records:
        if record.output:
            lines += ["", f"## {record.name}", "", _fenced(record.output[-_OUTPUT_CHARACTERS:])]
    results = {
        r.name: {"state": r.state, "seconds": round(r.seconds, 2), "message": r.message, "result": r.result}
        for r in records
    }
    content = json.dumps({"machine": machine, "steps": results}, indent=1, ensure_ascii=False)
    lines += ["", "## Everything that was measured", "", _fenced(content, "json"), ""]
    for file, text in ((path, "\n".join(lines)), *([(json_file, f"{content}\n")] if json_file else [])):
        with atomic_file(file) as temporary:
            temporary.write_text(without_secrets(text, Path.home()), encoding="utf-8")


def without_secrets(text: str, home: Path) -> str:
    """Return a text that can be published: the home folder is ``~``, and addresses contain no user and password."""
    for folder in {str(home), str(home.resolve())} - {"/"}:
        text = re.sub(re.escape(folder) + r"(?![\w.-])", "~", text)
    return re.sub(r"(?<=://)[^/\s@\"'`]+@", "***@", text)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _fenced(text: str, language: str = "") -> str:
    """Return a code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
