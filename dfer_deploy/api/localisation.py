"""Where PyTorch is at hand: every block of the graphs compared with it, and which blocks must stay fp32."""

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


def localised(
    bundle: Bundle, model: DferClip, shown: ShownClips, comparisons: Sequence[Comparison], served: Sequence[str]
) -> BlockComparison:
    """Compare the blocks of the bundle's graphs with PyTorch on the worst clips.

    Args:
        bundle: its graphs in ``onnx/`` are compared.
        model: the checkpoint's.
        shown: the clips' answers.
        comparisons: what was made of them. What each block does to the logits takes most of the time, and is measured
            only where something failed.
        served: names of the ways of serving that a server answered.
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
    """Return the clips whose logits differ most, of the first way of serving that failed; uint8 [N, 16, S, S, 3]."""
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
    """Find which blocks must stay fp32 in an fp16 export, and the command that exports the checkpoint so.

    Too few clips to decide are not a failure here: another precision would not give more of them. Neither are clips
    that cannot be read.

    Args:
        bundle: that was verified.
        checkpoint: file of the model.
        model: it is exported to a temporary folder, several times.
        clips: they are asked about once more for each export; best ``SpooledClips``.
        shown: the truth's answers to them.
        worst: a few clips for the blocks' effects, uint8 [N, 16, S, S, 3].
        limits: of the gate.
        groups: the source of every clip, by its name.
        batch_size: clips in one request.

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
    """PyTorch's answers of a verification that has just been made (a ``Truth``)."""

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
