"""``dfer-deploy doctor`` on machines that lack everything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.bundles.bundle import Bundle

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "open_clip", "onnx", "onnxscript", "onnxruntime", "tensorrt"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty PATH, no optional packages, no cache, another folder."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(BLOCKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("DFER_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(report: dict[str, Any]) -> dict[str, str]:
    return {line["what"]: line["state"] for lines in report["sections"].values() for line in lines}


def test_a_machine_that_lacks_everything(cli: Any, bare: Path) -> None:
    result = cli("doctor", "--json", bare / "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((bare / "report.json").read_text())
    found = states(report)
    for package in ("torch", "open_clip", "onnx", "onnxscript"):
        assert found[package] == "missing"
    assert found["onnxruntime"] == "problem"  # pip knows of it, Python does not
    assert found["Docker"] == "missing"
    assert report["able"] is None
    assert result.output.splitlines()[-1] == "next: pip install --force-reinstall --no-deps onnxruntime"
    assert not (bare / "cache").exists()


def test_the_parent_imports_nothing_heavy(bare: Path) -> None:
    """In a Python where torch and its like cannot be imported, the report is there all the same."""
    code = "import sys; from dfer_deploy.cli import main; sys.argv[1:] = ['doctor']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch           not installed" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_exit_code_says_whether_the_machine_can(cli: Any, bundle: Bundle, bare: Path) -> None:
    shutil.copytree(bundle.path, bare / "bundle")
    manifest = json.loads((bare / "bundle" / "manifest.json").read_text())
    (bare / "bundle" / "manifest.json").write_text(json.dumps(manifest | {"target": "onnxruntime"}))
    result = cli("doctor", bare / "bundle", "--json", bare / "report.json")
    assert result.exit_code == 1
    report = json.loads((bare / "report.json").read_text())
    assert states(report)["server"] == "problem"
    assert report["able"] is False
    assert result.output.splitlines()[-2:] == [
        "This machine cannot do what the bundle needs.",
        f"next: {report['next']}",
    ]


@pytest.mark.parametrize("content", [None, "", "nonsense", "[" * 100_000, '{"format": "dfer-deploy-bundle/1"}'])
def test_what_is_no_bundle_is_wrong_input(cli: Any, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    result = cli("doctor", tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert cli("doctor", tmp_path / "none").exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_bundle_is_wrong_input(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    (tmp_path / "manifest.json").chmod(0)
    result = cli("doctor", tmp_path)
    assert result.exit_code == 2
    assert "check its permissions" in result.output


def test_a_probe_that_fails_is_a_line(cli: Any, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("something\nodd")

    for probe in ("probe_package", "probe_gpus", "probe_embedded", "probe_triton", "probe_docker", "probe_resources"):
        monkeypatch.setattr(f"dfer_deploy.doctor.machine.{probe}", fails)
    result = cli("doctor")
    assert result.exit_code == 0
    for what in ("torch", "GPU", "embedded server", "tritonserver", "Docker", "resources"):
        (line,) = (line for line in result.output.splitlines() if line[13:29].strip() == what)
        assert "problem" in line
        assert "could not be looked at (RuntimeError: something odd)" in line
