"""A change of several files of a bundle, which takes effect with one rename.

The new files are first written into one file, ``.configure.json`` in the bundle's folder. As soon as it is there, the
change counts: if the process is killed before all files are in place, the next one that opens the bundle goes on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from dfer_deploy.bundles.bundle import MANIFEST_NAME
from dfer_deploy.bundles.engine_builds import BUILDS_NAME
from dfer_deploy.errors import BundleError, WriteError
from dfer_deploy.files import atomic_file, json_text
from dfer_deploy.machine.folders import locked_folder

PENDING_NAME = ".configure.json"

_MAX_BYTES = 64 << 20


def replace_files(path: Path, texts: Mapping[str, str]) -> None:
    """Replace configurations and the manifest of a bundle together.

    Args:
        path: the bundle's folder, which the caller has locked.
        texts: new contents by the files' names in the bundle.

    Raises:
        DferDeployError: the files cannot be written. The bundle is then as it was.
    """
    _put_in_place(path, texts, path / PENDING_NAME)


def finish_pending(path: Path) -> None:
    """Complete a change of a bundle whose process was killed. A process that is still at it is waited for.

    Raises:
        BundleError: it cannot be completed.
    """
    pending = path / PENDING_NAME
    if not pending.is_file():
        return
    with locked_folder(path):
        if not pending.is_file():
            return
        try:
            texts = _read(pending)
            _put_in_place(path, texts)
        except (WriteError, OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{path} was being configured when that was killed, and the change cannot be completed ({error}); "
                f"make the folder writable, or remove {pending} and configure the bundle again"
            ) from error


def _read(pending: Path) -> dict[str, str]:
    if pending.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{PENDING_NAME} has over {_MAX_BYTES} bytes")
    texts = json.loads(pending.read_text(encoding="utf-8"))
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{PENDING_NAME} is not a table of texts")
    for name in texts:
        parts = PurePosixPath(name).parts
        config = len(parts) == 3 and ".." not in parts and (parts[0], parts[2]) == ("model_repository", "config.pbtxt")
        if not config and name not in (MANIFEST_NAME, BUILDS_NAME):
            raise ValueError(f"{PENDING_NAME} names {name!r}, which is not a configuration")
        folder = (pending.parent / name).parent
        if folder.resolve() != pending.parent.resolve() / folder.relative_to(pending.parent):
            raise ValueError(f"{folder} is a link")
    return texts


def _put_in_place(path: Path, texts: Mapping[str, str], pending: Path | None = None) -> None:
    """Write the files beside the manifest, then the file of the change, rename the files, remove the change's file.

    Until the file of the change is there, a failure leaves the bundle as it was.
    """
    with contextlib.ExitStack() as stack:
        for name, text in texts.items():
            # A leftover temporary file in the repository would count as a foreign file.
            temporary = stack.enter_context(atomic_file(path / name, folder=path))
            temporary.write_text(text, encoding="utf-8")
        if pending is not None:
            with atomic_file(pending) as temporary:
                temporary.write_text(json_text(dict(texts)), encoding="utf-8")
    (path / PENDING_NAME).unlink()
