"""Answers of a verification by clip, which later ones can pool: the folds of a cross-validation have a bundle each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import require

Int64 = npt.NDArray[np.int64]

FORMAT = "dfer-deploy-verify/2"
"""Of what ``verify --json`` writes."""

_MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class ComparedAnswers:
    """What the reference and the candidates answered on the same N clips.

    Attributes:
        class_names: in the order of the class indices.
        clips: names, [N].
        groups: the source of each clip, [N]; None where clips count as independent.
        labels: int64 [N] in [0, C).
        reference: class indices, int64 [N].
        candidates: class indices by the candidate's name, int64 [N] each.
    """

    class_names: tuple[str, ...]
    clips: tuple[str, ...]
    groups: tuple[str, ...] | None
    labels: Int64
    reference: Int64
    candidates: dict[str, Int64]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``answers_from_json`` reads it back."""
        return {
            "clips": list(self.clips),
            "groups": None if self.groups is None else list(self.groups),
            "labels": self.labels.tolist(),
            "reference": self.reference.tolist(),
            "candidates": {name: answers.tolist() for name, answers in self.candidates.items()},
        }


def answers_from_json(path: Path) -> ComparedAnswers:
    """Reads the answers by clip out of what ``verify --json`` wrote.

    Raises:
        DferDeployError: the file is missing, too large, or no verification of this version.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {_MAX_FILE_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT!r}")
        class_names, answers = tuple(map(str, content["class_names"])), content["answers"]
        clips, groups = tuple(map(str, answers["clips"])), answers["groups"]
        labels, reference, *given = (
            _indices(values, len(clips), len(class_names))
            for values in (answers["labels"], answers["reference"], *answers["candidates"].values())
        )
        named = None if groups is None else tuple(map(str, groups))
        if not clips or len(named if named is not None else clips) != len(clips):
            raise ValueError("it has no clips, or not one group for each")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise DferDeployError(
            f"{path} is no result of verify ({reason}); make one with: verify … --json FILE"
        ) from error
    candidates = dict(zip(answers["candidates"], given, strict=True))
    return ComparedAnswers(class_names, clips, named, labels, reference, candidates)


def pooled(parts: Sequence[ComparedAnswers], candidate: str) -> ComparedAnswers:
    """All clips of the parts together, with this candidate's answers only.

    Raises:
        DferDeployError: the parts have other classes, not this candidate, groups only in some, or a clip in common.
    """
    first, *others = parts
    for other in others:
        require(
            other.class_names == first.class_names,
            f"a pooled verification has the classes {', '.join(other.class_names)}, this one "
            f"{', '.join(first.class_names)}; pool folds of one data set",
        )
        require(
            candidate in other.candidates,
            f"a pooled verification has no {candidate!r} (it has {', '.join(other.candidates)}); verify it alike",
        )
        require(
            (other.groups is None) == (first.groups is None),
            "one of the pooled verifications has groups and another has none; give --group-by to all or to none",
        )
    seen: set[str] = set()
    for part in parts:
        twice = min(seen & set(part.clips), default=None)
        require(twice is None, f"the clip {twice!r} is in two of the pooled verifications; each may count once")
        seen |= set(part.clips)
    return ComparedAnswers(
        class_names=first.class_names,
        clips=tuple(clip for part in parts for clip in part.clips),
        groups=None if first.groups is None else tuple(group for part in parts for group in part.groups or ()),
        labels=np.concatenate([part.labels for part in parts]),
        reference=np.concatenate([part.reference for part in parts]),
        candidates={candidate: np.concatenate([part.candidates[candidate] for part in parts])},
    )


def _indices(values: Any, count: int, classes: int) -> Int64:
    indices = np.array(values)
    if indices.shape != (count,) or indices.dtype.kind != "i" or indices.min() < 0 or indices.max() >= classes:
        raise ValueError(f"an answer is missing or none of the {classes} classes")
    return indices.astype(np.int64)
