"""The options of a verification, and the labelled clips that it uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.api.contestants import check_runtimes
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.errors import SettingError, spelled
from dfer_deploy.plain_data import check_fields
from dfer_deploy.specs import require
from dfer_deploy.verification.bounds import MAX_LOGIT_ERROR, MAX_POINTS


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification, named like the options of ``dfer-deploy verify``.

    Attributes:
        checkpoint: compare with this checkpoint in PyTorch. Either this or ``baseline`` is required.
        baseline: compare with answers of PyTorch that were saved on another machine.
        save_baseline: save PyTorch's answers to this file.
        urls: verify these running servers instead of starting one; at most one ``grpc://…`` and one ``http://…``.
        in_process: verify without a server.
        runtimes: compare only these (names from ``RUNTIMES``, and ``triton``); empty for all that the bundle and the
            machine allow.
        allow_host_code: let TensorRT execute the code that version-compatible engines carry.
        batch_size: number of clips in one request.
        max_logit_error: largest accepted difference of a logit; None for the limit of the policy or the precision.
        margin: margin for UAR and WAR in percentage points, fixed beforehand; None for the policy's or 0.5.
        group_by: regular expression whose first group matches the source of a clip in the clip's listed path.
        pool: results of earlier verifications whose clips count too.
        policy: TOML file with limits in its table ``[verify]``.
        own_test_list: whether the clips are those on which a reference checkpoint's ``best_acc`` was measured; None to
            detect it.
        bisect: find the blocks that must stay fp32 in an fp16 export.

    Raises:
        DferDeployError: an option is out of range, or two options contradict each other.
    """

    checkpoint: Path | str | None = None
    baseline: Path | str | None = None
    save_baseline: Path | str | None = None
    urls: tuple[str, ...] = ()
    in_process: bool = False
    runtimes: tuple[str, ...] = ()
    allow_host_code: bool = False
    batch_size: int = 4
    max_logit_error: float | None = None
    margin: float | None = None
    group_by: str | None = None
    pool: tuple[Path | str, ...] = ()
    policy: Path | str | None = None
    own_test_list: bool | None = None
    bisect: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_runtimes(self.runtimes)
        require(self.batch_size >= 1, f"the batch size is {self.batch_size}, expected at least 1")
        require(
            self.margin is None or 0 < self.margin <= MAX_POINTS,
            f"the margin is {self.margin}, expected more than 0 and at most {MAX_POINTS:g} points",
        )
        require(
            self.max_logit_error is None or 0 <= self.max_logit_error <= MAX_LOGIT_ERROR,
            f"the largest logit error is {self.max_logit_error}, expected 0 to {MAX_LOGIT_ERROR:g}",
        )
        require(
            (self.checkpoint is None) != (self.baseline is None),
            f"give either {spelled('checkpoint')} or {spelled('baseline')}",
        )
        require(
            not (self.urls and self.in_process),
            f"{spelled('urls')} names a server and {spelled('in_process')} omits it; choose one",
        )
        require(
            not (self.save_baseline and self.baseline),
            f"{spelled('save_baseline')} saves PyTorch's answers and needs {spelled('checkpoint')}",
        )
        require(
            not self.bisect or self.checkpoint is not None,
            f"{spelled('bisect')} exports the checkpoint again and needs {spelled('checkpoint')}",
        )

    @property
    def files(self) -> list[Path]:
        """All files that the verification reads, except the clips and their lists."""
        named = (self.checkpoint, self.baseline, self.policy, *self.pool)
        return [Path(path) for path in named if path is not None]


def labelled_clips(bundle: Bundle, lists: Sequence[Path], data_root: str | None = None) -> LabelledClips:
    """Read the lists of labelled clips for the verification of a bundle, in the given order.

    Args:
        bundle: the bundle whose classes the labels refer to.
        lists: paths of annotation lists, at least one.
        data_root: where the listed clips are on this machine; see ``--data-root``.

    Raises:
        DferDeployError: a list cannot be read, or two lists contain the same clip.
    """
    spec = bundle.spec
    size = spec.clip.vision.image_size
    read = [LabelledClips.from_list(path, spec.prompts.num_classes, size, data_root) for path in lists]
    seen: set[str] = set()
    for path, clips in zip(lists, read, strict=True):
        names = {annotation.name for annotation in clips.annotations}
        if seen & names:
            raise SettingError(f"the clip {min(seen & names)!r} of {path} is in an earlier list too; list it once")
        seen |= names
    return LabelledClips([annotation for clips in read for annotation in clips.annotations], size, tuple(lists))


def sources(pattern: str, annotations: Sequence[Annotation]) -> dict[str, str]:
    """Return the source of every clip, by the clip's name.

    Args:
        pattern: regular expression. The match of its first group in the listed path is the source.
        annotations: the clips.

    Raises:
        DferDeployError: the pattern is not a regular expression, has no group, or does not match a path.
    """
    named = spelled("group_by", pattern)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingError(f"{named} is not a regular expression ({error})") from error
    if not compiled.groups:
        raise SettingError(f"{named} has no group; put what names the source in parentheses")
    found = {annotation.name: compiled.search(annotation.name) for annotation in annotations}
    for name, match in found.items():
        if match is None or match[1] is None:
            raise SettingError(f"{named} finds no source in {name!r}; it must in every listed path")
    return {name: match[1] for name, match in found.items() if match is not None}
