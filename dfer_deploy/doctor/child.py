"""Run other programs, which may be absent, crash, hang or answer with anything.

Everything that uses a GPU library runs in a separate process, because a broken library ends its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

PROGRAM_TIMEOUT_S = 10.0
"""Longest wait for a program. A program that answers needs much less."""

IMPORT_TIMEOUT_S = 60.0
"""Longest wait for an import. The first import of torch from a cold disk takes half a minute."""

MAX_OUTPUT_BYTES = 1 << 20
"""Largest output of a program. A larger one is not an answer and would only take memory."""

_SAFE_PATH = "import sys; sys.path[:] = [entry for entry in sys.path if entry]\n"
"""With ``-c`` the current folder comes first in the path, so a file torch.py in it would be executed."""


class ProbeError(Exception):
    """A program did not give a usable answer; the message gives the reason in one phrase."""


@dataclass(frozen=True)
class ProgramResult:
    """The exit code of a program (negative for a signal), and both outputs."""

    returncode: int
    output: str
    errors: str


def run_program(command: Sequence[str], timeout_s: float = PROGRAM_TIMEOUT_S) -> ProgramResult:
    """Run a program, and end it with all its children if it takes too long or writes too much.

    Raises:
        ProbeError: the program cannot be started, or does not end within ``timeout_s`` and ``MAX_OUTPUT_BYTES``.
    """
    try:
        # A separate session, so that its children can be ended with it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise ProbeError(f"cannot be started ({getattr(error, 'strerror', None) or error})") from error
    assert process.stdout is not None and process.stderr is not None  # noqa: S101 - both are pipes, for mypy
    deadline = time.monotonic() + timeout_s
    with process.stdout, process.stderr:
        try:
            output, errors = _read(process.stdout, process.stderr, deadline)
            # The pipes are closed, or the time is over.
            returncode = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ProbeError(f"did not answer within {timeout_s:g} s") from None
        finally:
            _end(process)
    return ProgramResult(returncode, output, errors)


def output_of(command: Sequence[str], timeout_s: float = PROGRAM_TIMEOUT_S) -> str:
    """Return the standard output of a program that succeeds.

    Raises:
        ProbeError: see ``run_program``; or the program failed.
    """
    outcome = run_program(command, timeout_s)
    if outcome.returncode != 0:
        said = _last_line(outcome.errors) or _last_line(outcome.output) or "without a word"
        raise ProbeError(f"{ending(outcome.returncode)}: {said}")
    return outcome.output


def answer_of_python(code: str, *arguments: str, timeout_s: float = IMPORT_TIMEOUT_S) -> dict[str, Any]:
    """Run code with this Python in a separate process, and return its answer.

    Args:
        code: Python code that prints one JSON object in its last line.
        arguments: its ``sys.argv[1:]``.
        timeout_s: seconds for all of it.

    Raises:
        ProbeError: the code crashed, hung or raised an exception.
    """
    if not os.access(sys.executable, os.X_OK):
        raise ProbeError(f"was not asked: this Python ({sys.executable or 'embedded'}) cannot start another one")
    return json_object(_last_line(output_of([sys.executable, "-c", _SAFE_PATH + code, *arguments], timeout_s)))


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object from untrusted text.

    Raises:
        ProbeError: the text is not a JSON object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ProbeError(f"answered {shortened(text)!r} instead of JSON")
    return values


def shortened(text: str, length: int = 160) -> str:
    """Return untrusted text as one printable line of at most ``length`` characters."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text[:4096]).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _read(output: IO[bytes], errors: IO[bytes], deadline: float) -> tuple[str, str]:
    texts = {output: bytearray(), errors: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                piece = os.read(key.fd, 1 << 16)
                texts[key.fileobj].extend(piece)  # type: ignore[index]
                if not piece:
                    selector.unregister(key.fileobj)
            if sum(map(len, texts.values())) > MAX_OUTPUT_BYTES:
                raise ProbeError("writes without end")
    return texts[output].decode(errors="replace"), texts[errors].decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:  # its process id may belong to another process by now
        return
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    # Do not wait: a process can hang in the kernel, as nvidia-smi does with a broken driver.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)


def ending(returncode: int) -> str:
    """Describe how a process ended: its exit code, or the signal if it is negative."""
    if returncode >= 0:
        return f"failed with exit code {returncode}"
    try:
        return f"crashed with {signal.Signals(-returncode).name}"
    except ValueError:
        return f"crashed with signal {-returncode}"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
