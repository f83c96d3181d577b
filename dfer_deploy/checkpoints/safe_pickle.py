"""Reading of torch's checkpoint files without executing anything from them, and without taking more memory than their
size."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from dfer_deploy.errors import CheckpointError, DferDeployError

_MAX_PICKLE_BYTES = 64 << 20
_KNOWN_HARMLESS = (
    "__main__.RecorderMeter",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


class _Inert:
    """A placeholder for the known objects in a file that are neither tensors nor plain values. It is never used."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def load_tensors(path: Path) -> Any:
    """Load a file that ``torch.save`` wrote, with its tensors mapped from the disk.

    The reference implementation stores an instance of ``__main__.RecorderMeter`` with NumPy arrays in it; these become
    inert objects. A file with any other unsafe global name is refused.

    Returns:
        The saved content: plain containers, numbers, strings, tensors on the CPU and inert objects.

    Raises:
        DferDeployError: the file does not exist, is not a torch file or is truncated, or its pickle would import
            something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; expected a checkpoint such as model_best.pth")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(_why_not_a_zip(path))
    _check_archive(path)
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        dangerous = sorted(set(wanted) - set(_KNOWN_HARMLESS))
        if dangerous:
            raise CheckpointError(_refusal(path, dangerous))
        with torch.serialization.safe_globals([(_Inert, name) for name in _KNOWN_HARMLESS]):
            return _loaded(path)
    except DferDeployError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise CheckpointError(
            f"{path} is damaged or not a torch checkpoint ({_first_line(error)}); copy it again or save it again"
        ) from error


def _loaded(path: Path) -> Any:
    """Load the file mapped into memory, or read it where the file system cannot map files (network mounts)."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True, mmap=False)


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that the system does not read, which is not the file's fault."""
    return CheckpointError(
        f"{path} cannot be read ({error.strerror or error}); check its permissions, and the disk or the network"
    )


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            damaged = archive.testzip()
    except OSError as error:
        raise unreadable(path, error) from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); copy it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (the checksum of {damaged!r} is wrong); copy it again")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Check the entries before they are read. torch does not compress them, so they cannot exceed the file's size."""
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise CheckpointError(
            f"{path} is a zip file but not a torch checkpoint (it has no data.pkl); expected what torch.save writes"
        )
    size = path.stat().st_size
    for entry in entries:
        limit = _MAX_PICKLE_BYTES if entry.filename.endswith(".pkl") else size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > limit:
            raise CheckpointError(
                f"{path} holds the entry {entry.filename!r} that is compressed or claims {entry.file_size} bytes, "
                "which torch.save never writes; it is refused"
            )
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"{path} claims more content than its {size} bytes can hold; it is refused")


def _why_not_a_zip(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_MAX_PICKLE_BYTES)
    if head.startswith(b"PK"):
        return f"{path} is truncated (a zip file without its end, {path.stat().st_size} bytes); copy it again"
    names = _globals_in_pickles(head)
    if names is None:
        return (
            f"{path} is not a torch checkpoint (it is neither a zip file nor a pickle); expected what torch.save writes"
        )
    harmless = (*_KNOWN_HARMLESS, "collections.OrderedDict", "_codecs.encode")
    dangerous = [name for name in names if name not in harmless and not name.startswith("torch.")]
    if dangerous:
        return _refusal(path, dangerous)
    return (
        f"{path} is a bare pickle or a file from before PyTorch 1.6, not the zip format; "
        "load it where you trust it and save it again with torch.save"
    )


def _globals_in_pickles(data: bytes) -> list[str] | None:
    """Names that the pickles at the start of ``data`` would import; None without a pickle. Only opcodes are read."""
    names: list[str] = []
    pickles = 0
    file = io.BytesIO(data)
    while True:
        strings: list[str] = []
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except Exception:  # pickletools raises ValueError, UnicodeDecodeError and others where the pickles end
            return names if pickles or names else None
        pickles += 1


def _refusal(path: Path, names: list[str]) -> str:
    return (
        f"{path} is refused: loading it would import {', '.join(names[:5])}, which could run code; "
        "expected tensors, numbers and strings only"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
