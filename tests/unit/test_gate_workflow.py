"""The workflow that users copy: GitHub's schema, and the commands in it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKFLOW = Path(__file__).resolve().parents[2] / "docs" / "gate.yml"


def test_the_workflow_fits_githubs_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_commands_and_options_exist(cli: Any) -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    found = re.findall(r"dfer-deploy (\w+) (.*(?:\n +--.*)?)", text)
    assert [name for name, _ in found] == ["export", "verify", "bench", "report"]
    for name, rest in found:
        known = set(re.findall(r"--[a-z-]+", cli(name, "--help").output))
        assert set(re.findall(r"--[a-z-]+", rest)) <= known
