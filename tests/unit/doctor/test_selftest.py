"""Steps that fail, crash, hang or are interrupted, and the report about them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.doctor.selftest import (
    Outcome,
    Step,
    StepError,
    StepRecord,
    check_report,
    run_command,
    run_process,
    run_steps,
    without_secrets,
    write_selftest_report,
)
from dfer_deploy.errors import DferDeployError, WriteError


def failing(error: BaseException) -> Step:
    def run(done: object) -> Outcome:
        raise error

    return Step(type(error).__name__, run)


def test_every_step_runs_that_needs_no_failed_one() -> None:
    counts: list[int] = []
    records = run_steps(
        [
            failing(DferDeployError("one sentence")),
            failing(ZeroDivisionError("ours")),
            failing(StepError("told", output="printed", result={"half": 1})),
            Step("needs a failed one", lambda done: Outcome(1), needs=("StepError",)),
            Step("instead of a failed one", lambda done: Outcome(2), unless="StepError"),
            Step("not needed", lambda done: Outcome(3), unless="instead of a failed one"),
            Step("passes on", lambda done: Outcome(done["instead of a failed one"].result * 10)),
        ],
        lambda so_far: counts.append(len(so_far)),
    )
    assert [record.state for record in records] == ["failed"] * 3 + ["skipped", "done", "skipped", "done"]
    assert counts == [1, 2, 3, 4, 5, 6, 7]
    assert (records[0].message, records[0].output) == ("one sentence", "")
    assert records[1].message == "ZeroDivisionError: ours"
    assert "Traceback" in records[1].output
    assert (records[2].output, records[2].result) == ("printed", {"half": 1})
    assert records[3].message == "StepError did not go well"
    assert records[-1].result == 20


def test_an_interruption_is_recorded_before_it_ends_everything() -> None:
    seen: list[StepRecord] = []
    steps = [failing(KeyboardInterrupt()), Step("never", lambda done: pytest.fail("was run"))]
    with pytest.raises(KeyboardInterrupt):
        run_steps(steps, lambda so_far: seen.extend(so_far))
    assert [record.state for record in seen] == ["interrupted"]


def test_a_command_gives_its_json_and_its_sentence(bundle: Bundle, tmp_path: Path) -> None:
    outcome = run_command("selftest", bundle.path)
    assert outcome.result["passed"]
    assert "drawn clips" in outcome.output
    with pytest.raises(StepError, match=r"^dfer-deploy selftest failed with exit code 2: .*none does not exist"):
        run_command("selftest", tmp_path / "none")


def test_a_crash_and_a_hang_are_told() -> None:
    code = "import os, signal; print('before', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    assert run_process([sys.executable, "-c", code]) == (-11, "before\n")
    with pytest.raises(StepError, match=r"did not end within 0\.5 s") as hung:
        run_process([sys.executable, "-c", "import time; print('x', flush=True); time.sleep(60)"], timeout_s=0.5)
    assert hung.value.output in ("", "x\n")
    with pytest.raises(StepError, match="no-such-program cannot be started"):
        run_process(["no-such-program"])


def test_the_report_has_everything_and_no_secrets(tmp_path: Path) -> None:
    home = Path.home()
    output = f"read {home}/clips and ```code``` from https://me:secret@example.org/x"
    records = [
        StepRecord("build", "done", 1.5, result={"plan": f"{home}/b/model.plan"}, output=output),
        StepRecord("serve", "failed", 0.1, message="port | taken"),
    ]
    write_selftest_report(tmp_path / "report.md", {"GPU": "H100"}, records, tmp_path / "report.json")
    text = (tmp_path / "report.md").read_text()
    assert "| serve | failed | 0.1 | port \\| taken |" in text
    assert "````\nread ~/clips and ```code``` from https://***@example.org/x\n````" in text
    assert "secret" not in text
    assert f"{home}/" not in text
    block = re.search(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert (tmp_path / "report.json").read_text() == block[1]
    content = json.loads(block[1])
    assert content["machine"] == {"GPU": "H100"}
    assert content["steps"]["build"]["result"] == {"plan": "~/b/model.plan"}


def test_only_a_report_is_replaced_by_a_report(tmp_path: Path) -> None:
    check_report(tmp_path / "new.md")
    write_selftest_report(tmp_path / "report.md", {}, [])
    check_report(tmp_path / "report.md")
    (tmp_path / "notes.md").write_text("# My notes")
    with pytest.raises(WriteError, match=r"notes\.md exists and is not a report"):
        check_report(tmp_path / "notes.md")


def test_only_the_home_folder_itself_is_hidden() -> None:
    text = "/home/ada/x /home/ada /home/ada-lovelace/y"
    assert without_secrets(text, Path("/home/ada")) == "~/x ~ /home/ada-lovelace/y"
    assert without_secrets("/usr/bin", Path("/")) == "/usr/bin"
