"""Change how an exported bundle is served: write its configurations and manifest again, leave its graphs unchanged."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dfer_deploy.bundles.bundle import MANIFEST_NAME, Bundle, ServingOptions, check_serving
from dfer_deploy.bundles.engine_builds import BUILDS_NAME
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.bundles.pending import PENDING_NAME, replace_files
from dfer_deploy.errors import BundleError
from dfer_deploy.export.build_description import engine_builds_text
from dfer_deploy.export.repository import bundle_configs, config_text
from dfer_deploy.files import json_text, link_or_copy
from dfer_deploy.machine.folders import locked_folder


def configure_bundle(path: Path, serving: ServingOptions) -> tuple[Bundle, bool]:
    """Write every ``config.pbtxt`` of a bundle, ``build_engines.json`` and the manifest for new serving options.

    The files take effect together (``bundles/pending.py``), whatever ends the process. Another process that configures
    or exports the bundle is waited for. Leftover temporary files are removed.

    Args:
        path: the bundle's folder. Its configurations may be missing or damaged.
        serving: the new options. The manifest's own options repair the configurations.

    Returns:
        The bundle, and whether anything was written.

    Raises:
        DferDeployError: the folder is not a bundle, its target does not have these options, or it cannot be written.
    """
    with locked_folder(path):
        return _configured(open_bundle(path, check_files=False), serving)


def _configured(bundle: Bundle, serving: ServingOptions) -> tuple[Bundle, bool]:
    """Write what differs; see ``configure_bundle``. The caller has locked the folder."""
    path = bundle.path
    manifest = bundle.manifest
    check_serving(manifest.target, serving)
    texts = {
        f"{bundle.model_repository.name}/{config.name}/config.pbtxt": config_text(config)
        for config in bundle_configs(bundle, serving)
    }
    if manifest.target == "tensorrt":
        texts[BUILDS_NAME] = engine_builds_text(Bundle(path, dataclasses.replace(manifest, serving=serving)))
    for name in texts:
        folder = (path / name).parent
        if folder.resolve() != path.resolve() / folder.relative_to(path) or not folder.is_dir():
            raise BundleError(f"{folder} is not a folder of the bundle; export it again")
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    new = dataclasses.replace(manifest, serving=serving, files=manifest.files | hashes)
    changed = {name: text for name, text in texts.items() if not _holds(path / name, text)}
    for name in (MANIFEST_NAME, "config.pbtxt", BUILDS_NAME, PENDING_NAME):
        for abandoned in path.glob(f".{name}.*.part"):
            with contextlib.suppress(OSError):
                abandoned.unlink()
    if new != manifest:
        changed[MANIFEST_NAME] = json_text(dataclasses.asdict(new))
    if changed:
        replace_files(path, changed)
    return Bundle(path, new), bool(changed)


@contextlib.contextmanager
def temporary_bundle(bundle: Bundle) -> Iterator[Path]:
    """Make a copy of a bundle to try configurations on. It is deleted with the context, or by the next copy beside it.

    The files are hard links if the file system allows it, because ``configure_bundle`` replaces files and never changes
    one.

    Raises:
        DferDeployError: there is not enough space for it.
    """
    original = bundle.path.resolve()
    _remove_abandoned_trials(original)
    try:
        # Only beside the bundle can the files be hard links.
        temporary = tempfile.mkdtemp(prefix=f".{original.name}.", suffix=".trial", dir=original.parent)
    except OSError:
        temporary = tempfile.mkdtemp(prefix="dfer-deploy-", suffix=".trial")
    copy = Path(temporary)
    # The lock is held as long as this process lives, however it ends.
    lock = os.open(copy, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # on a file system without locks, nobody can lock it later either
            fcntl.flock(lock, fcntl.LOCK_EX)
        # A server in a container runs as another user.
        shutil.copymode(bundle.path, copy)
        for source in sorted(bundle.path.rglob("*")):
            if source.is_file() and not source.is_symlink():
                destination = copy / source.relative_to(bundle.path)
                destination.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, destination)
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        os.close(lock)


def _remove_abandoned_trials(bundle: Path) -> None:
    """Remove the copies beside the bundle whose process was killed."""
    for copy in bundle.parent.glob(f".{glob.escape(bundle.name)}.*.trial"):
        with contextlib.suppress(OSError):
            lock = os.open(copy, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(copy, ignore_errors=True)
            finally:
                os.close(lock)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode()
