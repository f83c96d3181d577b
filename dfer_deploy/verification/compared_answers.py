"""The answers of a verification by clip. Later verifications can pool them, because each fold has its own bundle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import spelled
from dfer_deploy.plain_data import json_values
from dfer_deploy.specs import require

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ComparedAnswers:
    """The answers of the reference and the candidates to the same N clips.

    Attributes:
        class_names: in the order of the class indices.
        clips: names of the clips, [N].
        clip_hashes: SHA-256 of the frames of each clip, [N]; see ``baseline.clip_hash``.
        groups: the source of each clip, [N]; None if clips count as independent.
        labels: int64 [N] in [0, C).
        reference: the reference's class indices, int64 [N].
        candidates: class indices by the candidate's name, int64 [N] each.
    """

    class_names: tuple[str, ...]
    clips: tuple[str, ...]
    clip_hashes: tuple[str, ...]
    groups: tuple[str, ...] | None
    labels: Int64
    reference: Int64
    candidates: dict[str, Int64]

    def __post_init__(self) -> None:
        clips, classes = len(self.clips), len(self.class_names)
        hashed = sum(bool(re.fullmatch("[0-9a-f]{64}", found)) for found in self.clip_hashes)
        require(
            len(self.clip_hashes) == hashed == clips,
            f"answers.clip_hashes has {hashed} SHA-256, expected one for each of {clips} clips",
        )
        sources = clips if self.groups is None else len(self.groups)
        require(sources == clips, f"answers.groups has {sources} sources, expected one for each of {clips} clips")
        for what, indices in {"labels": self.labels, "reference": self.reference, **self.candidates}.items():
            require(
                indices.shape == (clips,) and bool(((indices >= 0) & (indices < classes)).all()),
                f"the answers of {what!r} are not {clips} indices of {classes} classes",
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComparedAnswers) and bool(json_values(self) == json_values(other))

    __hash__ = None  # type: ignore[assignment] # arrays have no hash

    @property
    def once(self) -> ComparedAnswers:
        """Keep only the first of several clips with the same frames. A clip that is listed twice is one observation."""
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
        """Return for each clip whether a candidate answers another class than the reference, bool [N]."""
        return np.not_equal(self.candidates[candidate], self.reference)


def refuse_again(seen: Mapping[str, str], clips: Iterable[str], clip_hashes: Iterable[str]) -> None:
    """Refuse clips that were used in another verification.

    Args:
        seen: names of the earlier clips, by the SHA-256 of their frames.
        clips: names of the new clips.
        clip_hashes: SHA-256 of their frames, in the same order.

    Raises:
        DferDeployError: a clip has the same frames as an earlier one.
    """
    for clip, found in zip(clips, clip_hashes, strict=True):
        require(
            found not in seen,
            f"the clip {clip!r} has the frames of {seen.get(found)!r} in another pooled verification; each may count "
            "once, so pool only one of them",
        )


def pooled(parts: Sequence[ComparedAnswers], candidate: str) -> ComparedAnswers:
    """Join all clips of the parts, with the answers of this candidate only.

    Raises:
        DferDeployError: the parts have different classes, lack this candidate, share a clip, or only some have groups.
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
            f"one of the pooled verifications has groups and another has none; give "
            f"{spelled('group_by')} to all or to none",
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
