"""Folders from which programs are executed: they are this user's, and nobody else can write there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dfer_deploy.errors import ServerError


def make_private(folder: Path, variable: str) -> None:
    """Make a folder that only this user can enter, or make an existing one so.

    Args:
        folder: the folder. Its parents are made as usual.
        variable: environment variable that names another folder, for messages.

    Raises:
        ServerError: the folder belongs to another user, others can replace it, or it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        resolved = folder.resolve()
        if resolved.stat().st_uid != os.geteuid():
            raise _foreign(resolved, "belongs to another user", variable)
        if stat.S_IMODE(resolved.stat().st_mode) & 0o077:
            resolved.chmod(0o700)
        for parent in resolved.parents:
            found = parent.stat()
            # In a folder with the sticky bit, such as /tmp, only its owner can replace an entry.
            if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
                raise _foreign(resolved, f"can be replaced by other users, who can write to {parent}", variable)
    except OSError as error:
        raise ServerError(
            f"cannot make the folder {folder} private ({error.strerror or error}); choose another one with {variable}"
        ) from error


def check_content(folder: Path, variable: str) -> None:
    """Check that no other user has written to a folder, or can: owners and permissions of all its files and folders.

    Raises:
        ServerError: an entry belongs to another user than this one and root, or others can write to it.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files, "."):
            found = (Path(place) / name).lstat()
            writable = found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode)
            if found.st_uid not in (0, os.geteuid()) or writable:
                raise _foreign(folder, f"holds {name!r} in {place}, which other users can write", variable)


def _foreign(folder: Path, why: str, variable: str) -> ServerError:
    return ServerError(
        f"{folder} {why}, and programs in it are executed; remove it, or choose a folder of your own with {variable}"
    )
