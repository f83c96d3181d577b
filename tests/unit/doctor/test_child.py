"""Programs that are absent, crash, hang, or answer with anything."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from dfer_deploy.doctor.child import (
    ProbeError,
    answer_of_python,
    json_object,
    output_of,
    run_program,
    shortened,
)


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_both_outputs_and_the_exit_code() -> None:
    outcome = run_program(shell("echo out; echo err >&2; exit 3"))
    assert (outcome.returncode, outcome.output, outcome.errors) == (3, "out\n", "err\n")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no device >&2; exit 9", r"failed with exit code 9: no device"),
        ("exit 1", r"failed with exit code 1: without a word"),
        ("kill -SEGV $$", r"crashed with SIGSEGV"),
        ("exec sleep 60", r"did not answer within 0\.3 s"),
        ("yes", r"writes without end"),
    ],
)
def test_a_failure_is_one_phrase(script: str, said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        output_of(shell(script), timeout_s=0.3 if "sleep" in script else 20)


def test_what_cannot_be_started(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    for command in ("/nowhere/nvidia-smi", str(tmp_path), str(tmp_path / "text")):
        with pytest.raises(ProbeError, match="cannot be started"):
            run_program([command])


def test_the_children_of_a_program_that_hangs_end_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(ProbeError, match="did not answer"):
        run_program(shell(f"sleep 60 & echo $! > {pid_file}; wait"), timeout_s=1)
    pid = int(pid_file.read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":  # ended, and waits for whoever adopted it
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child still runs")


def test_a_daemon_that_keeps_the_pipes_open_is_not_waited_for() -> None:
    assert run_program(shell("sleep 3 & echo started"), timeout_s=0.5).output == "started\n"


def test_python_answers_in_its_last_line() -> None:
    code = "import json; print('a banner'); print(json.dumps({'given': sys.argv[1]}))"
    assert answer_of_python(code, "x") == {"given": "x"}
    with pytest.raises(ProbeError, match="ImportError: libcudart"):
        answer_of_python("raise ImportError('libcudart.so.12: cannot open')")
    with pytest.raises(ProbeError, match="crashed with SIGABRT"):
        answer_of_python("import os; os.abort()")


def test_a_python_that_does_not_know_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(ProbeError, match=r"this Python \(embedded\) cannot start another one"):
        answer_of_python("print('{}')")


def test_files_in_the_current_folder_are_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('run from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert answer_of_python("import colorsys; print('{}')") == {}


@pytest.mark.parametrize("text", ["", "[1]", "nonsense", "[" * 100_000, '{"a": ', "\x1b[31m"])
def test_what_is_no_json_object(text: str) -> None:
    with pytest.raises(ProbeError, match="instead of JSON"):
        json_object(text)


def test_untrusted_text_becomes_one_printable_line() -> None:
    assert shortened("a\n\x1b[31mb\t c\0") == "a [31mb c"
    assert shortened("x" * 500, 10) == "x" * 9 + "…"
