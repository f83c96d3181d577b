"""The state from which an interrupted run continues, and the identity by which a finished run is recognised.

``state.pt`` is replaced as a whole, so a process that is killed while it writes, or a full disk, leaves the previous
file. It contains only tensors, numbers and strings, and is read with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dfer_deploy.checkpoints.safe_pickle import load_tensors
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import TrainingError
from dfer_deploy.files import atomic_file, sha256_of_file
from dfer_deploy.specs import ModelSpec
from dfer_deploy.train.recipe import Recipe

STATE, RESULT = "state.pt", "result.json"

DATASET = "dataset.json"
"""The file in which a data set describes itself, in its root; the drawn data set has one."""

_FORMAT = "dfer-deploy-training-state/2"
"""Format of a state. It must change when an older version could not read it or would misread it."""

_IRRELEVANT = {"run": ("device", "save_every_s", "tensorboard"), "data": ("root", "data_root", "cache")}
"""Settings that may differ between a run and its continuation, because they do not change what is computed."""


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: epoch of the next step, counted from 1; the recipe's number of epochs + 1 when all are done.
        step: number of finished steps in this epoch.
        loss_sum, hits, seen: sum of the losses, correct answers and clips of this epoch's steps.
        history: for every finished epoch: number, loss, training WAR, learning rates and, if measured, scores.
        best: the best epoch so far, if epochs are compared: its number (``epoch``), ``war``, ``confusion`` matrix and
            ``unreadable`` clips.
        seconds: wall time so far, over all parts of the run.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    hits: int = 0
    seen: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss of the epoch's clips so far."""
        return self.loss_sum / max(1, self.seen)

    @property
    def war(self) -> float:
        """Share of correct answers among them, in percent."""
        return 100.0 * self.hits / max(1, self.seen)


def run_identity(recipe: Recipe, spec: ModelSpec, annotations: Sequence[Annotation]) -> dict[str, Any]:
    """Return what two parts of one run must have in common.

    These are the settings that affect the result, the lines of the lists, the data set's own description and the file
    of the pretrained weights, if there are any. The clips themselves are not read.

    Args:
        recipe: recipe of the run.
        spec: specification of its model, which may depend on files that the recipe names.
        annotations: training clips and test clips, in their order.

    Raises:
        DferDeployError: a file exists but cannot be read.
    """
    settings = recipe.to_dict()
    for table, names in _IRRELEVANT.items():
        for name in names:
            settings[table].pop(name)
    lines = "".join(f"{clip.name}\t{clip.listed_frames}\t{clip.label}\n" for clip in annotations)
    return {
        "recipe": settings,
        "spec": spec.to_dict(),
        "clips": hashlib.sha256(lines.encode()).hexdigest(),
        "dataset": _digest(Path(recipe.data.root or ".") / DATASET),
        "pretrained": _digest(Path(recipe.model.pretrained)) if recipe.model.pretrained_is_file else None,
    }


def save_state(path: Path, identity: dict[str, Any], progress: Progress, tensors: dict[str, Any]) -> None:
    """Write a state atomically.

    Args:
        path: path of the file; an existing file is replaced.
        identity: identity of the run; see ``run_identity``.
        progress: its progress.
        tensors: state dictionaries of everything that changes from step to step.

    Raises:
        DferDeployError: the file cannot be written; the previous state is kept.
    """
    content = {"format": _FORMAT, "identity": identity, "progress": dataclasses.asdict(progress), **tensors}
    with atomic_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk as an error about its position in the file
            raise TrainingError(
                f"cannot write {path} ({error}); the previous state stays: free some space and give the same command "
                "again"
            ) from error


def load_state(path: Path, identity: dict[str, Any]) -> tuple[Progress, dict[str, Any]] | None:
    """Read the state of a run and its tensors, on the CPU; return None if the file does not exist.

    Raises:
        DferDeployError: the file is damaged, or belongs to a run with another recipe or other clips.
    """
    if not path.exists():
        return None
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise TrainingError(f"{path} is not a training state of this version; begin anew with --fresh")
    with damage_named(path):
        _check_identity(path, content["identity"], identity)
        # Copied out of the mapped file, because an optimiser keeps the tensors that it is given.
        tensors = {name: _own_memory(content[name]) for name in content.keys() - {"format", "identity", "progress"}}
        return _progress(content["progress"]), tensors


def load_result(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Read the result that a finished run wrote; return None if no run has finished.

    Raises:
        DferDeployError: the file is damaged, or belongs to a run with another recipe or other clips.
    """
    if not path.exists():
        return None
    with damage_named(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_identity(path, content["identity"], identity)
        return content  # type: ignore[no-any-return]


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading a damaged file of an earlier run into one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise TrainingError(f"{path} is damaged ({type(error).__name__}); begin anew with --fresh") from error


def _progress(values: dict[str, Any]) -> Progress:
    progress, initial = Progress(**values), Progress()
    for name in values.keys() - {"best"}:
        if type(getattr(progress, name)) is not type(getattr(initial, name)):
            raise TypeError(name)
    if progress.step < 0 or progress.epoch != len(progress.history) + 1:
        raise ValueError("epoch")
    kinds = {"epoch": int, "loss": float, "train_war": float, "rates": dict}
    if any(type(entry[name]) is not kind for entry in progress.history for name, kind in kinds.items()):
        raise TypeError("history")
    if progress.best is not None and not isinstance(progress.best["war"], float):
        raise TypeError("best")
    return progress


def _digest(path: Path) -> str | None:
    try:
        return sha256_of_file(path) if path.is_file() else None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _check_identity(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found == wanted:
        return
    known, asked = (_flat(identity["recipe"]) | _flat(identity["spec"]) for identity in (found, wanted))
    different = [name for name in sorted(known.keys() | asked.keys()) if known.get(name) != asked.get(name)]
    if different:
        name, others = different[0], f" and {len(different) - 1} more" if len(different) > 1 else ""
        what = f"{name}{others}: {known.get(name)!r} there, {asked.get(name)!r} here"
    elif found["clips"] != wanted["clips"]:
        what = "the lists name other clips, frame counts or labels now"
    else:
        changed = DATASET if found["dataset"] != wanted["dataset"] else "the file model.pretrained"
        what = f"{changed} has another content now"
    raise TrainingError(
        f"{path} is of another run ({what}); choose another -o, or add --fresh to replace that run's files"
    )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _own_memory(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _own_memory(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_own_memory(item) for item in value)
    return value
