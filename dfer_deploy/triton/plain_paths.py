"""Paths that a shell takes as they are.

Triton's Python backend starts the process of each model through an unquoted ``bash -c`` (python_backend,
``stub_launcher.cc``). With a space in the path of a bundle or of the private environment, no model starts, and the name
of a folder such as ``$(command)`` is executed. PATH and LD_LIBRARY_PATH cannot express a colon. So the server gets
symbolic links with plain names, in a private folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from dfer_deploy.errors import ServerError
from dfer_deploy.triton.guard import BACKEND_FOLDERS, link_places

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


def is_plain(path: Path) -> bool:
    """Check whether a path has only characters without a meaning for a shell, PATH and LD_LIBRARY_PATH."""
    return _PLAIN.fullmatch(str(path)) is not None


class PlainLinks:
    """Makes symbolic links with plain names, in a private folder that is made with the first one."""

    def __init__(self, mark: str) -> None:
        """Prepare for links.

        Args:
            mark: begins the folder's name, by which the guard process finds and removes it.
        """
        self._mark = mark
        self._folder: Path | None = None

    def to(self, path: Path, name: str) -> Path:
        """Return ``path`` if it is plain, else a link to it.

        Args:
            path: an absolute path.
            name: the link's name.

        Raises:
            ServerError: no folder with a plain path can be written.
        """
        if is_plain(path):
            return path
        if self._folder is None:
            self._folder = _private_folder(path, self._mark)
        link = self._folder / name
        link.symlink_to(path)
        return link

    def remove(self) -> None:
        """Remove the links and their folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def check_places(path: Path) -> None:
    """Check that Triton's Python backend can make its own folder, and that it can run from ``path``.

    Raises:
        ServerError: it cannot.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="dfer_deploy_", dir=BACKEND_FOLDERS):
            pass
    except OSError as error:
        raise ServerError(
            f"{BACKEND_FOLDERS} cannot be written ({error.strerror or error}), where Triton's Python backend makes a "
            "folder whatever TMPDIR is; free some space there, or make it writable"
        ) from error
    links = PlainLinks(f"dfer_deploy_{os.getpid()}_")
    links.to(path, "checked")
    links.remove()


def _private_folder(path: Path, mark: str) -> Path:
    reasons = []
    for place in link_places():
        if is_plain(place):
            try:
                return Path(tempfile.mkdtemp(prefix=mark, dir=place))
            except OSError as error:
                reasons.append(f"{place}: {error.strerror or error}")
    raise ServerError(
        f"Triton's Python backend cannot run from {str(path)!r}, because it passes the path to a shell, and a link "
        f"with a plain name cannot be made ({'; '.join(reasons)}); use a path of letters, digits and _ . + -"
    )
