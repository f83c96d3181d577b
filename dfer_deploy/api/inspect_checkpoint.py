"""Describe a checkpoint without executing anything in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_deploy.errors import extras_named
from dfer_deploy.files import sha256_of_file
from dfer_deploy.plain_data import checked_arguments, json_values
from dfer_deploy.specs import ModelSpec, PromptPosition


@dataclass(frozen=True)
class CheckpointSummary:
    """A description of a checkpoint.

    Attributes:
        path: path of the file.
        format: ``dfer-deploy`` or ``reference``.
        sha256: SHA-256 of the file.
        parameters: number of values in all its tensors.
        spec: the model. For a reference checkpoint, the position of the contexts and the class names are assumptions
            unless they were given.
        best_acc: the WAR in percent that the file states, or None.
        frame_interval_s: seconds between the 16 frames of a training clip, or None if unknown.
        provenance: what else the file says about its training.
        assumed: ``prompt_position`` and ``class_names``, each only if it is neither in the file nor given.
    """

    path: Path
    format: str
    sha256: str
    parameters: int
    spec: ModelSpec
    best_acc: float | None
    frame_interval_s: float | None
    provenance: dict[str, Any]
    assumed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: every attribute under its name."""
        values: dict[str, Any] = json_values(self)
        return values | {"path": str(self.path)}


@extras_named("reading a checkpoint")
@checked_arguments
def inspect_checkpoint(
    path: Path | str,
    *,
    prompt_position: PromptPosition | None = None,
    class_names: tuple[str, ...] | None = None,
) -> CheckpointSummary:
    """Read a checkpoint and check that its parameters fit the model that it describes.

    Args:
        path: file of dfer-deploy or of the reference implementation.
        prompt_position: position of the learned contexts, which a reference checkpoint does not contain.
        class_names: in the order of the logits; a reference checkpoint does not contain them either.

    Raises:
        DferDeployError: the file is not a checkpoint, would execute code, or its parameters are missing or do not fit.
    """
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint

    found = load_checkpoint(Path(path), prompt_position=prompt_position, class_names=class_names)
    found.build_model()
    given = {"prompt_position": prompt_position, "class_names": class_names}
    return CheckpointSummary(
        path=Path(path),
        format=found.format,
        sha256=sha256_of_file(Path(path)),
        parameters=sum(tensor.numel() for tensor in found.state.values()),
        spec=found.spec,
        best_acc=found.best_acc,
        frame_interval_s=found.frame_interval_s,
        provenance={name: value for name, value in found.provenance.items() if isinstance(value, int | float | str)},
        assumed=tuple(name for name, value in given.items() if found.format == "reference" and value is None),
    )
