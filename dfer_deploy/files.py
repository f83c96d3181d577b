"""Atomic writing of files, and reading of JSON results."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfer_deploy.errors import ResultError, WriteError

_MAX_JSON_BYTES = 256 << 20
"""Limits the size of a result file. The largest result, of a list of some 100,000 clips, has a quarter of it."""


def sha256_of_file(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file)


def file_digest(file: Any) -> str:
    """Compute the hexadecimal SHA-256 of an open binary file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_file(path: Path, *, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed to ``path``, on failure it is removed.

    Args:
        path: the final file.
        folder: folder of the temporary file, on the same file system; by default that of ``path``.

    Raises:
        DferDeployError: ``path`` is not a regular file, the folder cannot be written, or the disk is full.
    """
    if path.exists() and not path.is_file():
        raise WriteError(f"{path} is not a regular file, so it is not replaced; give the name of a file")
    folder = folder or path.parent
    with disk_errors(path, folder):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Yield the absolute path of a new temporary folder, which is removed with the context.

    Raises:
        WriteError: no temporary folder can be written, or it is full.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        raise WriteError(
            f"no temporary folder can be written ({error.strerror or error}); name one in the variable TMPDIR"
        ) from error
    with folder as name:
        path = Path(name).absolute()
        with disk_errors(path, path):
            yield path


def refuse_to_replace_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is one of the inputs, also through other names and links.

    Raises:
        DferDeployError: ``output`` is one of ``inputs``.
    """
    for path in inputs:
        with contextlib.suppress(OSError):  # where one of them does not exist, nothing is replaced
            if output.samefile(path):
                raise WriteError(f"{output} would replace the input {path}; choose another name")


def refuse_to_write_into_bundle(output: Path, bundle: Path) -> None:
    """Refuse an output in a bundle's folder, where it would replace a file or be a foreign one.

    Raises:
        DferDeployError: ``output`` lies in ``bundle``.
    """
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(bundle)):
        raise WriteError(f"{output} would change the bundle {bundle}; choose another place")


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Sequence[Path | None], bundle: Path | None = None
) -> None:
    """Check, before the work, that the outputs can be written after it without losing other files.

    Args:
        outputs: paths by the option that names them; None for an option that is not set.
        inputs: paths that are read; None for an option that is not set.
        bundle: folder in which outputs are not allowed.

    Raises:
        DferDeployError: an output is an input, is the output of another option, is in the bundle, or cannot be written.
    """
    taken: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        refuse_to_replace_input(path, [file for file in inputs if file is not None])
        if bundle is not None:
            refuse_to_write_into_bundle(path, bundle)
        earlier = taken.setdefault(os.path.realpath(path), option)
        if earlier != option:
            raise WriteError(f"{earlier} and {option} both write {path}; choose another name for one of them")
        if path.exists() and not path.is_file():
            raise WriteError(f"{path} is not a regular file, so it is not replaced; give the name of a file")
        with disk_errors(path, path.parent), tempfile.TemporaryFile(dir=path.parent):
            pass


def link_or_copy(source: Path, destination: Path) -> None:
    """Make a hard link to ``source``, or a copy if the file system does not allow it."""
    try:
        destination.hardlink_to(source)
    except OSError as error:
        # File systems without hard links say so in many ways. What hinders a copy too is reported by the copy.
        if error.errno in (errno.EEXIST, errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
            raise
        with atomic_file(destination) as temporary:
            shutil.copyfile(source, temporary)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys and a final newline, atomically. Every number must be finite."""
    with atomic_file(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """Format a value as ``write_json`` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path, command: str) -> dict[str, Any]:
    """Read a file that ``--json`` of ``command`` wrote.

    Raises:
        DferDeployError: the file cannot be read, is larger than 256 MiB, or is not a JSON table of finite numbers.
    """
    again = f"make it with: dfer-deploy {command} … --json {path}"
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ResultError(f"{path} has over {_MAX_JSON_BYTES} bytes; {again}")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise ResultError(f"{path} cannot be read ({error.strerror}); {again}") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not valid JSON ({error}); {again}") from error
    if not isinstance(values, dict):
        raise ResultError(f"{path} holds, instead of a table, {str(values)[:80]!r}; {again}")
    return values


def _finite(text: str) -> float:
    """Refuse ``NaN`` and ``Infinity``, which JSON does not have, and numbers such as ``1e999``, which overflow."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a number")
    return value


@contextlib.contextmanager
def disk_errors(path: Path, folder: Path) -> Iterator[None]:
    """Turn an error of the file system below ``folder`` into one sentence that names ``path``.

    Raises:
        WriteError: something below ``folder`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and not _is_below(Path(os.fsdecode(error.filename)), folder):
            raise
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; nothing was left behind, {advice}"
        ) from error


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def umask() -> int:
    """Return the permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
