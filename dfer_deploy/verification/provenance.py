"""The origin of a result: checkpoint, graphs, engines, configuration and clips, each with its SHA-256."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_deploy.bundles.bundle import MANIFEST_NAME, Bundle
from dfer_deploy.files import sha256_of_file
from dfer_deploy.specs import require
from dfer_deploy.verification.baseline import Truth

CHECKPOINT, MANIFEST, COMPARED_CHECKPOINT = "checkpoint", "manifest", "compared checkpoint"
"""Stages of the chain: the exported checkpoint, the manifest, and the checkpoint that the bundle is compared with."""

_MAX_DESCRIPTION_BYTES = 1 << 20
"""Largest description of a drawn data set. A larger file of that name is something else."""

_FOLDERS_ABOVE = 4
"""Largest depth of clips and lists below the root of a drawn data set, where its description lies."""


@dataclass(frozen=True)
class Link:
    """A file in the chain from weights to result: its stage, its name in the bundle or the list, and its SHA-256."""

    stage: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """The origin of a result.

    Attributes:
        chain: the files in the order in which they were made from each other: checkpoint, ONNX graphs, TensorRT plans,
            Triton configurations, manifest; then the compared checkpoint, the baseline, the annotation lists and the
            pooled verifications.
        name: name of the bundle's ensemble.
        version: version of the bundle's models.
        target: target of the bundle.
        precision: precision of the graphs.
        tools: versions of the packages that exported the bundle, by name.
        synthetic: what a drawn data set says about itself; None for other clips.
    """

    chain: tuple[Link, ...]
    name: str
    version: int
    target: str
    precision: str
    tools: dict[str, Any]
    synthetic: str | None

    def __post_init__(self) -> None:
        require(
            bool(self.chain) and self.chain[0].stage == CHECKPOINT,
            "provenance.chain does not begin with the checkpoint, expected every file from the weights to the clips",
        )

    def sha256(self, stage: str) -> str | None:
        """Return the SHA-256 of the first file of a stage; None if there is no such file."""
        return next((link.sha256 for link in self.chain if link.stage == stage), None)


def provenance(
    bundle: Bundle,
    truth: Truth,
    baseline: Path | None,
    lists: Sequence[Path],
    clips: Iterable[Path],
    pool_files: Sequence[Path] = (),
) -> Provenance:
    """Hash the files from the weights to the clips.

    Args:
        bundle: a bundle whose files have been checked.
        truth: the truth that it was compared with.
        baseline: the file that the truth was read from; None for PyTorch.
        lists: the annotation lists.
        clips: paths of the clips on this machine.
        pool_files: results of earlier verifications whose clips count too.

    Raises:
        DferDeployError: the record of the engines is damaged, or an engine differs from the recorded one.
    """
    built = bundle.engines
    manifest = bundle.manifest
    chain = [(CHECKPOINT, "", manifest.checkpoint.sha256)]
    chain += [("ONNX", name, digest) for name, digest in manifest.files.items() if name.startswith("onnx/")]
    chain += [("plan", record.plan, record.sha256) for record in (built.engines.values() if built else ())]
    chain += [("config", name, digest) for name, digest in manifest.files.items() if name.endswith("config.pbtxt")]
    chain.append((MANIFEST, MANIFEST_NAME, sha256_of_file(bundle.path / MANIFEST_NAME)))
    chain.append((COMPARED_CHECKPOINT, "", truth.checkpoint_sha256))
    chain += [("baseline", baseline.name, sha256_of_file(baseline))] if baseline else []
    chain += [("list", path.name, sha256_of_file(path)) for path in lists]
    chain += [("pooled verification", path.name, sha256_of_file(path)) for path in pool_files]
    return Provenance(
        chain=tuple(Link(*link) for link in chain),
        name=manifest.name,
        version=manifest.version,
        target=manifest.target,
        precision=manifest.precision,
        tools=manifest.tools,
        synthetic=synthetic_note([*lists, *clips]),
    )


def synthetic_note(paths: Iterable[Path]) -> str | None:
    """Return the note in the ``dataset.json`` of a drawn data set if one of the files belongs to one, else None."""
    folders = {folder for path in paths for folder in list(path.resolve().parents)[:_FOLDERS_ABOVE]}
    notes = {note for folder in sorted(folders) if (note := _note(folder / "dataset.json"))}
    return min(notes, default=None)


def _note(path: Path) -> str | None:
    try:
        if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
            return None
        note = json.loads(path.read_text(encoding="utf-8")).get("note")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return note if isinstance(note, str) else None
