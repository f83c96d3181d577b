"""Folders that are written as a whole, by one process at a time, and repaired after a process was killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from dfer_deploy.console import stderr, warn
from dfer_deploy.errors import WriteError, spelled
from dfer_deploy.files import disk_errors, umask

_HAS_LOCKS = os.name == "posix"
if _HAS_LOCKS:
    import fcntl

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_held = threading.local()


@contextlib.contextmanager
def atomic_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on success it is renamed to ``path``, on failure it is removed.

    Args:
        path: the final folder. Another process that writes it is waited for.
        force: replace an existing folder; otherwise an existing one is an error.

    Raises:
        DferDeployError: ``path`` exists and ``force`` is not set, or it cannot be written.
    """
    path = path.resolve()
    with disk_errors(path, path.parent), locked_folder(path, make_parents=True):
        if path.exists() and not force:
            raise WriteError(f"{path} exists already; choose another name or replace it with {spelled('force', True)}")
        if path.exists() and not path.is_dir():
            raise WriteError(f"{path} is a file, expected the name of a folder; choose another name")
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            temporary.chmod(0o777 & ~umask())
            yield temporary
            _replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked_folder(path: Path, *, make_parents: bool = False) -> Iterator[None]:
    """Let no other process write the folder while the context lasts, and clean up after processes that were killed.

    The lock is a file beside the folder, which vanishes with the context, or the folder itself where nothing can be
    written beside it. On a file system without locks, there is none. The same thread may lock a folder again.

    Args:
        path: the folder, which need not exist.
        make_parents: create the folders above it.
    """
    path = path.resolve()
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    if path in held:
        yield
        return
    if make_parents:
        with disk_errors(path, path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    lock = _locked(path.parent / f".{path.name}.lock", path)
    held.add(path)
    try:
        if lock is not None:
            _clean_up(path)
        yield
    finally:
        held.discard(path)
        if lock is not None:
            _unlock(path.parent / f".{path.name}.lock", lock)


def _locked(file: Path, folder: Path) -> int | None:
    """Wait for the lock and return its descriptor; None where files cannot be locked."""
    waiting = False
    while _HAS_LOCKS:
        lock = _opened(file, folder)
        if lock is None:
            return None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    stderr.print(f"Another process is writing {folder}; waiting for it …", markup=False)
                waiting = True
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            _unlock(file, lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        if _is_at(file, lock) or _is_at(folder, lock):
            return lock
        os.close(lock)  # the process that held it has removed the file
    return None


def _opened(file: Path, folder: Path) -> int | None:
    # The file of another user can only be read; network file systems lock only files that are open for writing.
    for path, flags in ((file, os.O_RDWR | os.O_CREAT), (file, os.O_RDONLY), (folder, os.O_RDONLY)):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return None


def _unlock(file: Path, lock: int) -> None:
    """Remove the file of a lock before others can have the lock, and give the lock up."""
    if _is_at(file, lock):
        with contextlib.suppress(OSError):
            file.unlink()
    os.close(lock)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _clean_up(path: Path) -> None:
    """Put an old folder back that was being replaced, and remove what killed processes left beside ``path``.

    The caller has the lock, so the processes that made these folders have ended.
    """
    old, parts = (left_beside(path, suffix) for suffix in (".old", ".part"))
    if not path.exists() and old:
        back = max(old, key=lambda folder: folder.stat().st_mtime)
        with contextlib.suppress(OSError):
            back.replace(path)
            old.remove(back)
            warn(f"{path} was being replaced when that was killed; the old one is in its place again")
    removed = []
    for folder in (*old, *parts):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            removed.append(folder.name)
    if removed:
        warn(f"removed what killed processes had left beside {path}: {', '.join(removed)}")


def left_beside(path: Path, suffix: str) -> list[Path]:
    """List the temporary folders for ``path``, with the suffix ``.part`` (new ones) or ``.old`` (replaced ones)."""
    name = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}" + re.escape(suffix))
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return []
    return [folder for folder in beside if name.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink()]


def _replace_folder(new: Path, path: Path) -> None:
    """Replace ``path`` by ``new``, at once where the system can; the old folder may then be at ``new``.

    Elsewhere there are two renames. If the second fails, the old folder is restored; after a kill between them, the
    next process that locks the folder restores it.
    """
    if not path.exists():
        new.replace(path)
        return
    if _exchanged(new, path):
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        path.replace(old)
        try:
            new.replace(path)
        except BaseException:
            old.replace(path)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step (Linux's ``renameat2``); return False where that is impossible."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return int(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)) == 0
