"""Answers of a verification by clip, which later ones can pool: the folds of a cross-validation have a bundle each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import require
from dfer_deploy.verification.limits import Limits

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
        clip_hashes: SHA-256 of the frames that were shown, [N]; see ``baseline.clip_hash``.
        groups: the source of each clip, [N]; None where clips count as independent.
        labels: int64 [N] in [0, C).
        reference: class indices, int64 [N].
        candidates: class indices by the candidate's name, int64 [N] each.
    """

    class_names: tuple[str, ...]
    clips: tuple[str, ...]
    clip_hashes: tuple[str, ...]
    groups: tuple[str, ...] | None
    labels: Int64
    reference: Int64
    candidates: dict[str, Int64]

    @property
    def once(self) -> ComparedAnswers:
        """Of clips with the same frames only the first: a clip that is listed twice proves no more."""
        rows = np.sort(np.unique(np.array(self.clip_hashes), return_index=True)[1])
        return ComparedAnswers(
            class_names=self.class_names,
            clips=tuple(self.clips[row] for row in rows),
            clip_hashes=tuple(self.clip_hashes[row] for row in rows),
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows),
            labels=self.labels[rows],
            reference=self.reference[rows],
            candidates={name: answers[rows] for name, answers in self.candidates.items()},
        )

    def flipped(self, candidate: str) -> npt.NDArray[np.bool_]:
        """Whether a candidate answers another class than the reference, [N]."""
        return np.not_equal(self.candidates[candidate], self.reference)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``earlier_from_json`` reads it back."""
        return {
            "clips": list(self.clips),
            "clip_hashes": list(self.clip_hashes),
            "groups": None if self.groups is None else list(self.groups),
            "labels": self.labels.tolist(),
            "reference": self.reference.tolist(),
            "candidates": {name: answers.tolist() for name, answers in self.candidates.items()},
        }


@dataclass(frozen=True)
class EarlierVerification:
    """A verification whose clips count again.

    Attributes:
        path: of its file.
        answers: by clip.
        limits: what it accepted.
        target: of the bundle that it verified.
        failure: which file failed and what was first, in one sentence; None where it did not fail.
    """

    path: Path
    answers: ComparedAnswers
    limits: Limits
    target: str
    failure: str | None = None

    def check_alike(self, limits: Limits, target: str) -> None:
        """Refuses what proves nothing for a verification with these limits of a bundle for this target.

        Raises:
            DferDeployError: it has another precision or target, or it accepted more.
        """
        for what, its, ours in (
            ("precision", self.limits.precision, limits.precision),
            ("target", self.target, target),
        ):
            require(
                its == ours,
                f"the pooled verification {self.path} is of the {what} {its}, this one of {ours}; pool folds that are "
                "served alike",
            )
        for name, most in vars(limits).items():
            accepted = getattr(self.limits, name)
            require(
                name == "precision" or accepted <= most,
                f"the pooled verification {self.path} accepted {name} up to {accepted}, this one up to {most}; verify "
                "that fold again with the same limits",
            )


def earlier_from_json(path: Path) -> EarlierVerification:
    """Reads the answers by clip out of what ``verify --json`` wrote, and whether it failed.

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
        require(
            "clip_hashes" in answers,
            f"{path} does not tell the frames of its clips, so that one may count twice; verify that fold again",
        )
        hashes = tuple(map(str, answers["clip_hashes"]))
        if len(hashes) != len(clips) or not all(re.fullmatch("[0-9a-f]{64}", found) for found in hashes):
            raise ValueError("it has not one SHA-256 for each clip")
        labels, reference, *given = (
            _indices(values, len(clips), len(class_names))
            for values in (answers["labels"], answers["reference"], *answers["candidates"].values())
        )
        named = None if groups is None else tuple(map(str, groups))
        if not clips or len(named if named is not None else clips) != len(clips):
            raise ValueError("it has no clips, or not one group for each")
        accepted, target = dict(content["limits"]), str(content["provenance"]["target"])
        failures = list(map(str, content["failures"]))
        if content["passed"] is not True or content["exit_code"] not in (ExitCode.DONE, ExitCode.UNDECIDED):
            failures.append("it does not say why")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise DferDeployError(
            f"{path} is no result of verify ({reason}); make one with: verify … --json FILE"
        ) from error
    accepted.pop("roundings", None)  # as the precision says
    try:
        limits = spec_from_dict(Limits, accepted, "limits")
    except DferDeployError as error:
        raise DferDeployError(
            f"{path} is no result of this version's verify ({error}); verify that fold again"
        ) from error
    candidates = dict(zip(answers["candidates"], given, strict=True))
    return EarlierVerification(
        path=path,
        answers=ComparedAnswers(class_names, clips, hashes, named, labels, reference, candidates),
        limits=limits,
        target=target,
        failure=f"the pooled verification {path} failed: {failures[0]}" if failures else None,
    )


def refuse_again(seen: Mapping[str, str], clips: Iterable[str], clip_hashes: Iterable[str]) -> None:
    """Refuses clips that were seen in another verification.

    Args:
        seen: names by the SHA-256 of the frames.
        clips: names.
        clip_hashes: of their frames.

    Raises:
        DferDeployError: a clip has the frames of one that was seen.
    """
    for clip, found in zip(clips, clip_hashes, strict=True):
        require(
            found not in seen,
            f"the clip {clip!r} has the frames of {seen.get(found)!r} in another pooled verification; each may count "
            "once, so pool only one of them",
        )


def pooled(parts: Sequence[ComparedAnswers], candidate: str) -> ComparedAnswers:
    """All clips of the parts together, with this candidate's answers only.

    Raises:
        DferDeployError: the parts have other classes, not this candidate, groups only in some, or a clip twice.
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
    names: set[str] = set()
    frames: dict[str, str] = {}
    for part in parts:
        twice = min(names & set(part.clips), default=None)
        require(twice is None, f"the clip {twice!r} is in two of the pooled verifications; each may count once")
        names |= set(part.clips)
        refuse_again(frames, part.clips, part.clip_hashes)
        frames |= dict(zip(part.clip_hashes, part.clips, strict=True))
    return ComparedAnswers(
        class_names=first.class_names,
        clips=tuple(clip for part in parts for clip in part.clips),
        clip_hashes=tuple(found for part in parts for found in part.clip_hashes),
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
