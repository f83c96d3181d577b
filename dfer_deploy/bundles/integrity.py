"""Opening of bundles, and comparison of their files with the manifest and with the record of the engines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dfer_deploy.bundles.bundle import MANIFEST_FORMAT, MANIFEST_NAME, Bundle, Manifest, check_model_name
from dfer_deploy.bundles.engine_builds import BUILDS_NAME
from dfer_deploy.bundles.pending import finish_pending
from dfer_deploy.errors import BundleError, ConfigurationError, DferDeployError
from dfer_deploy.files import sha256_of_file
from dfer_deploy.machine.folders import left_beside
from dfer_deploy.plain_data import spec_from_dict

MAX_MANIFEST_BYTES = 16 << 20

OLDEST_MIGRATED = 3
"""Number of the oldest format that ``migrate`` reads: that of 0.1.0."""


def is_bundle(path: Path) -> bool:
    """Check whether a folder has a bundle's manifest, of any version. The bundle may be damaged."""
    manifest = path / MANIFEST_NAME
    try:
        values = (
            json.loads(manifest.read_text(encoding="utf-8")) if manifest.stat().st_size <= MAX_MANIFEST_BYTES else {}
        )
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and str(values.get("format")).startswith("dfer-deploy-bundle/")


def open_bundle(path: Path, *, check_files: bool = True) -> Bundle:
    """Open a bundle and check its manifest.

    Args:
        path: the bundle's folder.
        check_files: also compare the bytes of every file with the manifest.

    Raises:
        DferDeployError: the folder is not a bundle, its manifest is damaged or of another version, or a file was
            changed.
    """
    finish_pending(path)
    bundle = bundle_from_values(path, manifest_values(path), expected=MANIFEST_FORMAT)
    if check_files:
        check_bundle_files(bundle)
    return bundle


def manifest_values(path: Path) -> dict[str, Any]:
    """Read the manifest of a bundle's folder as plain values, whatever its format.

    Raises:
        BundleError: the folder does not exist or is not a bundle, or its manifest is not a JSON object.
    """
    manifest_path = path / MANIFEST_NAME
    if not path.exists():
        # A process that replaces a bundle may have been killed between its two renames.
        for old in left_beside(path.absolute(), ".old"):
            if is_bundle(old):
                raise BundleError(
                    f"{path} was being replaced when that was killed; the old one is there: "
                    f"mv {_typed(old)} {_typed(path)}"
                )
        raise BundleError(f"{path} does not exist; make it with: dfer-deploy export CKPT -o {_typed(path)}")
    if not manifest_path.is_file():
        raise BundleError(
            f"{path} is not a bundle (it has no {MANIFEST_NAME}); make one with: "
            f"dfer-deploy export CKPT -o {_typed(path)}"
        )
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest_path} is over {MAX_MANIFEST_BYTES} bytes, which no manifest is")
    try:
        values = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{manifest_path} is not valid JSON ({error}); export the bundle again") from error
    if not isinstance(values, dict):
        raise BundleError(f"{manifest_path} is not a JSON object; export the bundle again")
    return values


def bundle_from_values(path: Path, values: Mapping[str, Any], *, expected: str) -> Bundle:
    """Make a bundle from the values of its manifest. They are not trusted.

    Args:
        path: the bundle's folder.
        values: the manifest's values, with the fields of today.
        expected: the format that the values must have.

    Raises:
        BundleError: the format is another, or a value is not valid.
    """
    manifest_path = path / MANIFEST_NAME
    found = values.get("format")
    if found != expected:
        raise BundleError(f"{manifest_path} has the format {found!r}, expected {expected!r}; {_remedy(found, path)}")
    try:
        manifest = spec_from_dict(Manifest, values)
        check_model_name(manifest.name)
    except DferDeployError as error:
        raise BundleError(f"{manifest_path}: {error}") from error
    _check_paths(manifest.files, manifest_path)
    return Bundle(path, manifest)


def _remedy(found: Any, path: Path) -> str:
    """Return the step that leads from a format to today's."""
    family, _, today = MANIFEST_FORMAT.rpartition("/")
    number = str(found).removeprefix(f"{family}/")
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        return "export the bundle again"
    if int(number) > int(today):
        return "a newer version of dfer-deploy wrote it, which also reads it"
    if int(number) < OLDEST_MIGRATED:
        return "no released version wrote it; export the bundle again"
    return f"an older version wrote it; migrate it with: dfer-deploy migrate {_typed(path)} -o NEW"


def _typed(path: Path) -> str:
    return shlex.quote(str(path))


def is_intact(bundle: Bundle) -> bool:
    """Check whether ``check_bundle_files`` passes."""
    try:
        check_bundle_files(bundle)
    except DferDeployError:
        return False
    return True


def check_bundle_files(bundle: Bundle) -> None:
    """Compare every file with the manifest, and the engines with the record of their build.

    Raises:
        DferDeployError: a file is missing or changed, the model repository has a file that is not part of the bundle,
            or an engine does not match its record.
    """
    built = bundle.engines
    plans = {record.plan for record in built.engines.values()} if built else set()
    # Triton loads every folder of the repository and executes every model.py in it.
    found = {path.relative_to(bundle.path).as_posix() for path in _repository_files(bundle)}
    foreign = sorted(found - set(bundle.manifest.files) - plans)
    if foreign:
        raise BundleError(f"{bundle.path / foreign[0]} is not part of the exported bundle; remove it")
    for name in bundle.manifest.files:
        check_file(bundle, name)


def check_file(bundle: Bundle, name: str) -> None:
    """Compare one file with the manifest.

    Args:
        bundle: an opened bundle.
        name: the file's path in the bundle.

    Raises:
        DferDeployError: the file is missing, or its SHA-256 differs from the manifest's.
    """
    path = bundle.path / name
    configured = path.name in ("config.pbtxt", BUILDS_NAME)
    error = ConfigurationError if configured else BundleError
    again = f"write it again with: dfer-deploy configure {_typed(bundle.path)}" if configured else "export it again"
    if not path.is_file():
        raise error(f"{path} is missing from the bundle; {again}")
    if sha256_of_file(path) != bundle.manifest.files.get(name):
        raise error(f"{path} is damaged or was changed after the export (its SHA-256 is not the manifest's); {again}")


def _repository_files(bundle: Bundle) -> list[Path]:
    """The files, links and empty folders of the model repository."""
    return [
        path
        for path in bundle.model_repository.rglob("*")
        if not path.is_dir() or path.is_symlink() or not any(path.iterdir())
    ]


def _check_paths(files: Mapping[str, Any], manifest_path: Path) -> None:
    for name, digest in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not isinstance(digest, str):
            raise BundleError(f"{manifest_path} lists the file {name!r}, which is not inside the bundle")
