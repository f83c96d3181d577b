"""Write a bundle of an older version in today's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.engine_records import SIDECAR


@dataclass(frozen=True)
class MigrationResult:
    """The outcome of a migration.

    Attributes:
        bundle: the new bundle, opened.
        old_format: format of the old bundle, for example ``dfer-deploy-bundle/3``.
        left_out: what the new bundle does not have although the old one has it, in words: older versions in the model
            repository, and built engines.
    """

    bundle: Bundle
    old_format: str
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in the form that ``migrate --json`` writes."""
        return {"bundle": str(self.bundle.path), "old_format": self.old_format, "left_out": list(self.left_out)}


def migrate_bundle(bundle: Path | str, output: Path | str) -> MigrationResult:
    """Write a bundle of this version's format around the graphs of an older one, which is left unchanged.

    The checkpoint is not needed: the weights and the measured parity are those of the old bundle.

    Args:
        bundle: folder of a bundle that 0.1.0 or a later version wrote.
        output: the new bundle's folder, which must not exist.

    Raises:
        DferDeployError: the old bundle or one of its graphs is damaged, its format is not known, or the new one cannot
            be written.
    """
    from dfer_deploy.export.migration import migrate_to_folder

    old, new = migrate_to_folder(Path(bundle), Path(output))
    return MigrationResult(new, old.manifest.format, _left_out(old))


def _left_out(old: Bundle) -> tuple[str, ...]:
    newest = old.manifest.version
    folders = old.model_repository.glob(f"{old.contract.image_encoder.name}/[0-9]*")
    older = sorted(int(folder.name) for folder in folders if folder.name.isdecimal() and int(folder.name) < newest)
    left_out = [f"version {version} of the models" for version in older]
    if (old.path / SIDECAR).exists():
        left_out.append("the TensorRT engines")
    return tuple(left_out)
