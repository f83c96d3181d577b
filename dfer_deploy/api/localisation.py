"""Compare the blocks of the graphs with PyTorch, and find those that must stay fp32. Needs the checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.runtimes.predictor import Float32, Frames, Predictor
from dfer_deploy.specs import Precision
from dfer_deploy.verification.blocks import Bisection, BlockComparison
from dfer_deploy.verification.limits import Limits, Rounding
from dfer_deploy.verification.verification_result import Comparison
from dfer_deploy.verification.verify import ShownClips, show_clips

if TYPE_CHECKING:
    from dfer_deploy.model.dfer_clip import DferClip

SERVED_DIFFERS = "the graphs in onnx/ are right, and what the model repository serves differs from them"
"""The explanation of a failure that only a server shows, while no block leaves its tolerance."""


def localised(
    bundle: Bundle, model: DferClip, shown: ShownClips, comparisons: Sequence[Comparison], served: Sequence[str]
) -> BlockComparison:
    """Compare the blocks of the bundle's graphs with PyTorch on the worst clips.

    Args:
        bundle: the bundle whose graphs in ``onnx/`` are compared.
        model: the checkpoint's model.
        shown: the answers to the clips.
        comparisons: their judgement. The effect of each block on the logits takes most of the time, so it is measured
            only if a comparison failed.
        served: names of the ways of serving that go through a server.
    """
    from dfer_deploy.export.layers import localise

    manifest, worst = bundle.manifest, worst_clips(shown, comparisons)
    files = bundle.image_encoder_onnx, bundle.temporal_head_onnx
    failed = {comparison.name for comparison in comparisons if comparison.failures}
    found = localise(model, *files, worst, manifest.precision, manifest.keep_fp32, effects=bool(failed))
    if found.failing and not failed:
        found = localise(model, *files, worst, manifest.precision, manifest.keep_fp32)
    blamed = SERVED_DIFFERS if failed and failed <= set(served) and not found.failing else str(found)
    return replace(found, where=blamed)


def worst_clips(shown: ShownClips, comparisons: Sequence[Comparison]) -> Frames:
    """Return the clips whose logits differ most, uint8 [N, 16, S, S, 3], for the first way of serving that failed."""
    failed = next((c for c in comparisons if c.failures), comparisons[0])
    return shown.collected[failed.name].worst_clips


def bisected(
    bundle: Bundle,
    checkpoint: Path,
    model: DferClip,
    clips: LabelledClips,
    shown: ShownClips,
    worst: Frames,
    limits: Limits,
    groups: Mapping[str, str] | None,
    *,
    batch_size: int,
) -> Bisection:
    """Find the blocks that must stay fp32 in an fp16 export, and the command for that export.

    Having too few clips to decide is not a failure here, because another precision would not add clips. The same holds
    for clips that cannot be read.

    Args:
        bundle: the verified bundle.
        checkpoint: file of the model.
        model: the model; it is exported to a temporary folder several times.
        clips: the clips, which every export answers again; preferably ``SpooledClips``.
        shown: the truth's answers to the clips.
        worst: a few clips on which the effects of the blocks are measured, uint8 [N, 16, S, S, 3].
        limits: limits of the gate.
        groups: the source of every clip, by the clip's name.
        batch_size: number of clips in one request.

    Raises:
        DferDeployError: a block cannot be exported.
    """
    from dfer_deploy.export.bisection import bisect

    truth = _RememberedTruth(shown, bundle.manifest.checkpoint.sha256)

    def gate(predictor: Predictor) -> Sequence[str]:
        tried = show_clips(
            bundle.spec.prompts.class_names, truth, [predictor], clips, batch_size=batch_size, groups=groups
        )
        return [failure for comparison in tried.comparisons(limits) for failure in comparison.failures]

    found = bisect(model, worst, gate)
    return found if found.keep_fp32 is None else replace(found, command=_command(bundle, checkpoint, found.keep_fp32))


@dataclass(frozen=True)
class _RememberedTruth:
    """PyTorch's answers from the verification that was just made; implements ``Truth``."""

    shown: ShownClips
    checkpoint_sha256: str

    @property
    def name(self) -> str:
        return self.shown.truth

    def answer(self, annotations: list[Annotation], frames: Frames) -> tuple[Float32, Float32]:
        rows = [self.shown.answers.clips.index(annotation.name) for annotation in annotations]
        return self.shown.frame_features[rows], self.shown.logits[rows]

    def rounding_costs(self, frames: Frames) -> dict[Precision, Rounding]:
        return self.shown.rounding


def _command(bundle: Bundle, checkpoint: Path, keep_fp32: Sequence[str]) -> str:
    manifest, prompts = bundle.manifest, bundle.spec.prompts
    words = ["dfer-deploy", "export", str(checkpoint), "-o", f"{bundle.path}-mixed", "--target", manifest.target]
    words += ["--precision", "fp16", "--name", manifest.name]
    if manifest.checkpoint.format == "reference":
        words += ["--prompt-position", prompts.position, "--class-names", ",".join(prompts.class_names)]
    if keep_fp32:
        words += ["--keep-fp32", ",".join(keep_fp32)]
    return shlex.join(words)
