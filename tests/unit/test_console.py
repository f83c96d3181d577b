"""What long work says where there is no terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfer_deploy import console

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.02)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_long_work_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in console.progress(range(20), "reading", 20):
        time.sleep(0.01)
    first, *others = lines(capsys)
    assert others
    assert not first.startswith("reading: 20 ")  # said while the work went on, not at its end
    assert all(line.startswith("reading: ") and " of 20 after " in line for line in [first, *others])


def test_shares_are_percentages_and_a_total_need_not_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar(counts=False) as bar:
        task = bar.add_task("building [engine]", total=4)
        for _ in range(4):
            time.sleep(0.03)
            bar.update(task, advance=1)
    assert lines(capsys)[0].startswith("building [engine]: 25 % after ")
    for _ in console.progress((number for number in range(10)), "looking"):
        time.sleep(0.02)
    assert all(" of " not in line for line in lines(capsys))


def test_work_that_is_short_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 60.0)
    assert list(console.progress(range(5), "reading", 5)) == [0, 1, 2, 3, 4]
    assert lines(capsys) == []


def test_a_long_step_goes_on_saying_so_and_ends_with_its_tick(capsys: pytest.CaptureFixture[str]) -> None:
    with console.step("export [x]"):
        time.sleep(0.07)
    *going_on, done = lines(capsys)
    assert going_on
    assert all(line.startswith("export [x]: ") and line.endswith(" s so far") for line in going_on)
    assert done.startswith("\u2713 export [x] (")
    with pytest.raises(ValueError, match="no"), console.step("fails"):
        raise ValueError("no")
    assert lines(capsys)[-1].startswith("\u2717 fails")


@pytest.mark.parametrize(
    ("start", "streams"),
    [
        ("import sys; sys.stdout = sys.stderr = None", "both None"),
        ("import sys; sys.stdout = type('Cell', (), {'write': len, 'flush': lambda self: None})()", "no isatty"),
    ],
)
def test_a_program_without_a_terminal_can_import_and_print(start: str, streams: str) -> None:
    code = f"{start}; from dfer_deploy import Client; from dfer_deploy.console import warn; warn('said')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), streams


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_traceback(closed: str, tmp_path: Path) -> None:
    """A file that is opened must not get the number of a closed stream either: its text would go there."""
    code = "import sys; from dfer_deploy.cli import main; sys.argv[1:] = ['inspect', 'absent.pth']; main()"
    script = f"'{sys.executable}' -c \"{code}\" {closed}"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
