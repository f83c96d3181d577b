"""Folders that are written as a whole, while other processes do the same and some are killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dfer_deploy.errors import WriteError
from dfer_deploy.files import link_or_copy
from dfer_deploy.machine import folders
from dfer_deploy.machine.folders import atomic_folder, locked_folder

ROOT = Path(__file__).resolve().parents[3]


def test_two_writers_of_one_new_folder_take_turns(tmp_path: Path) -> None:
    """Before there was a lock, both succeeded and one result vanished."""
    entered, others = threading.Event(), []

    def second() -> None:
        try:
            with atomic_folder(tmp_path / "b") as temporary:
                (temporary / "second").touch()
        except WriteError as error:
            others.append(str(error))

    with atomic_folder(tmp_path / "b") as temporary:
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait(0.3)
        (temporary / "first").touch()
    thread.join(10)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["first"]
    assert len(others) == 1
    assert "exists already" in others[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def test_many_replacements_at_once_leave_one_folder(tmp_path: Path) -> None:
    def replace(number: int) -> None:
        for _ in range(10):
            with atomic_folder(tmp_path / "b", force=True) as temporary:
                (temporary / str(number)).touch()

    threads = [threading.Thread(target=replace, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]
    assert len(list((tmp_path / "b").iterdir())) == 1


def test_a_replacement_is_one_rename_where_the_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if not folders._exchanged(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange folders")
    inode = (tmp_path / "one").stat().st_ino
    monkeypatch.setattr(Path, "replace", lambda *paths: pytest.fail("renamed one after the other"))
    with atomic_folder(tmp_path / "one", force=True) as temporary:
        (temporary / "new").touch()
    assert (tmp_path / "one").stat().st_ino != inode
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["new"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_writer_that_is_killed_at_its_renames_loses_nothing(tmp_path: Path, exchange: bool) -> None:
    """The next writer finds the old folder, and removes what the killed one left."""
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "old").touch()
    code = f"""
import os, shutil, signal
from pathlib import Path
from dfer_deploy.machine import folders
if not {exchange}:
    folders._exchanged = lambda one, other: False
    original = Path.replace
    def replace(self, target):
        if self.name.endswith(".part"):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target)
    Path.replace = replace
else:
    shutil.rmtree = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
with folders.atomic_folder(Path({str(folder)!r}), force=True) as temporary:
    (temporary / "new").touch()
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with locked_folder(folder):
        assert [path.name for path in folder.iterdir()] == (["new"] if exchange else ["old"])
    assert list(tmp_path.iterdir()) == [folder]


def test_the_work_of_a_living_process_and_of_other_folders_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".b.other.abcd1234.part").mkdir()  # of the folder b.other
    with atomic_folder(tmp_path / "b") as temporary:
        started = time.monotonic()
        script = f"""
            import pathlib
            from dfer_deploy.machine.folders import locked_folder
            with locked_folder(pathlib.Path({str(tmp_path / "b")!r})):
                pass
        """
        command = [sys.executable, "-c", textwrap.dedent(script)]
        waiting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "waiting for it" in waiting.stderr.readline()
        assert temporary.is_dir()
    with waiting:
        waiting.wait(20)
    assert time.monotonic() - started < 20
    assert (tmp_path / ".b.other.abcd1234.part").is_dir()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with atomic_folder(tmp_path / "b") as temporary:
        (temporary / "file").touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_hard_links_gets_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "a").write_text("content")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
