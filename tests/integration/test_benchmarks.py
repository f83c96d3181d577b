"""The fastest of the benchmarks as a user runs it; the others share its code and are run by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.usefixtures("environment")
def test_a_quick_run_writes_result_and_picture(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "against_reference.py", "--quick", "--rounds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "against_reference.json").read_text())
    names = ["onnxruntime", "reference", "served HTTP", "served gRPC", "text once"]
    assert sorted(result["contestants"]) == sorted(names)
    for row in result["contestants"].values():
        assert row["logit_error"] < 0.01
        assert len(row["seconds"]["rounds"]) == 1
    assert (tmp_path / "against_reference.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_pauses_give_no_wrong_answer_and_lose_none(tmp_path: Path) -> None:
    """Of the trials, one each stops a stub, the server, and the server with its guard."""
    command = [sys.executable, BENCHMARKS / "pauses.py", "--quick", "--trials", "6"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "pauses.json").read_text())
    assert (result["wrong"], result["lost although retried"]) == (0, 0)
    assert result["answers"] > 100
