"""What child processes get of the caller's world."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dfer_deploy.machine.children import child_environment, own_environment


def test_nothing_that_changes_what_a_child_executes_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PIP_CONSTRAINT", "BASH_ENV", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/elsewhere")
    for name in ("http_proxy", "HTTPS_PROXY", "grpc_proxy", "no_proxy"):
        monkeypatch.setenv(name, "elsewhere:1")
    monkeypatch.setenv("DFER_DEPLOY_CACHE", "/cache")
    variables = child_environment()
    assert not {"/elsewhere", "elsewhere:1"} & set(variables.values())
    assert variables["DFER_DEPLOY_CACHE"] == "/cache"
    reaches_others = child_environment(proxies=True)
    assert reaches_others["HTTPS_PROXY"] == "elsewhere:1"
    assert "/elsewhere" not in reaches_others.values()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_ends_with_a_killed_parent() -> None:
    script = """
        import subprocess, sys, time
        from dfer_deploy.machine.children import end_with_parent
        child = subprocess.Popen(["sleep", "60"], preexec_fn=end_with_parent)
        print(child.pid, flush=True)
        time.sleep(60)
    """
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_another_process_of_this_python_imports_nothing_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    assert own_environment()["PYTHONSAFEPATH"] == "1"
    assert own_environment()["PYTHONPATH"] == "/elsewhere"
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    assert "PYTHONSAFEPATH" not in own_environment()
