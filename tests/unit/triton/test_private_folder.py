"""Programs are executed from folders only that nobody else can write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfer_deploy.errors import ServerError
from dfer_deploy.triton.private_folder import check_content, make_private

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
OTHER = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose parents nobody else can write."""
    return tmp_path / "cache"


def test_a_new_folder_is_private(folder: Path) -> None:
    make_private(folder, "CACHE")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_own_folder_that_others_could_enter_is_closed(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    make_private(folder, "CACHE")
    assert folder.stat().st_mode & 0o777 == 0o700


@ROOT_ONLY
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(ServerError):
        make_private(folder, "CACHE")


def test_a_folder_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ServerError):
        make_private(tmp_path / "open" / "cache", "CACHE")
    (tmp_path / "open").chmod(0o1777)  # as /tmp
    make_private(tmp_path / "open" / "cache", "CACHE")


def test_a_file_that_others_can_write_is_found(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "python3"
    program.touch(0o755)
    (folder / "bin" / "link").symlink_to("/nowhere")
    check_content(folder, "CACHE")
    program.chmod(0o757)
    with pytest.raises(ServerError):
        check_content(folder, "CACHE")
    program.chmod(0o755)
    (folder / "bin").chmod(0o777)
    with pytest.raises(ServerError):
        check_content(folder, "CACHE")


@ROOT_ONLY
def test_a_planted_program_is_found(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "python3"
    program.touch(0o755)
    os.chown(program, OTHER, OTHER)
    with pytest.raises(ServerError):
        check_content(folder, "CACHE")
