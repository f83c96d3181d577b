"""Asks other programs, which may be absent, crash, hang or answer with anything.

Whatever touches a GPU library is asked in a process of its own: a broken one takes its process with it.
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
IMPORT_TIMEOUT_S = 60.0
"""A first import of torch from a cold disk takes half a minute."""

MAX_OUTPUT_BYTES = 1 << 20

_SAFE_PATH = "import sys; sys.path[:] = [entry for entry in sys.path if entry]\n"
"""With ``-c`` the current folder comes first: a file torch.py in it would be run."""


class ProbeError(Exception):
    """A program gave no usable answer; the message says why, in one phrase."""


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended: its exit code (negative for a signal), and both outputs."""

    returncode: int
    output: str
    errors: str


def run_program(command: Sequence[str], timeout_s: float = PROGRAM_TIMEOUT_S) -> ProgramResult:
    """Runs a program, and ends it with all its children if it takes too long or writes too much.

    Raises:
        ProbeError: it cannot be started, or did not end within ``timeout_s`` and ``MAX_OUTPUT_BYTES``.
    """
    try:
        # A session of its own, so that its children can be ended with it.
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
            # The pipes are closed by now, or the time is over.
            returncode = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ProbeError(f"did not answer within {timeout_s:g} s") from None
        finally:
            _end(process)
    return ProgramResult(returncode, output, errors)


def output_of(command: Sequence[str], timeout_s: float = PROGRAM_TIMEOUT_S) -> str:
    """What a program that succeeds writes to its standard output.

    Raises:
        ProbeError: as in ``run_program``, or it failed.
    """
    outcome = run_program(command, timeout_s)
    if outcome.returncode != 0:
        said = _last_line(outcome.errors) or _last_line(outcome.output) or "without a word"
        raise ProbeError(f"{ending(outcome.returncode)}: {said}")
    return outcome.output


def answer_of_python(code: str, *arguments: str, timeout_s: float = IMPORT_TIMEOUT_S) -> dict[str, Any]:
    """Runs code with the running Python in a process of its own.

    Args:
        code: prints one JSON object in its last line.
        arguments: its ``sys.argv[1:]``.
        timeout_s: for all of it.

    Raises:
        ProbeError: it crashed, hung or raised.
    """
    if not os.access(sys.executable, os.X_OK):
        raise ProbeError(f"was not asked: this Python ({sys.executable or 'embedded'}) cannot start another one")
    return json_object(_last_line(output_of([sys.executable, "-c", _SAFE_PATH + code, *arguments], timeout_s)))


def json_object(text: str) -> dict[str, Any]:
    """A JSON object from untrusted text.

    Raises:
        ProbeError: it is none.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ProbeError(f"answered {shortened(text)!r} instead of JSON")
    return values


def shortened(text: str, length: int = 160) -> str:
    """Untrusted text as one printable line of at most ``length`` characters."""
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
    if process.returncode is not None:  # its number may be another's by now
        return
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process that hangs in the kernel, as nvidia-smi does with a broken driver, cannot be waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)


def ending(returncode: int) -> str:
    """How a process ended, in words: its exit code, or the signal where it is negative."""
    if returncode >= 0:
        return f"failed with exit code {returncode}"
    try:
        return f"crashed with {signal.Signals(-returncode).name}"
    except ValueError:
        return f"crashed with signal {-returncode}"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
