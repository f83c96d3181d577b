"""What ``verify`` adds where PyTorch is: every block of the graphs held against it, and which must stay fp32."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.clips.reading import Clip
from dfer_deploy.console import stdout, table
from dfer_deploy.runtimes.predictor import Float32, Frames, Predictor
from dfer_deploy.specs import Precision
from dfer_deploy.verification.limits import Limits, Rounding
from dfer_deploy.verification.verify import Verification
from dfer_deploy.verification.verify import verify as run_verification

if TYPE_CHECKING:
    from dfer_deploy.export.bisection import Bisection
    from dfer_deploy.export.layers import Localisation
    from dfer_deploy.model.dfer_clip import DferClip

WORST_CLIPS = 3
"""The blocks are compared on so many clips. What each does to the logits takes most of the time, about 20 s a clip with
ViT-B/32 on two cores, and is measured only where something failed."""

SERVED_DIFFERS = "the graphs in onnx/ are right, and what the model repository serves differs from them"


def localised(bundle: Bundle, model: DferClip, clips: LabelledClips, result: Verification) -> Localisation:
    """Compares the blocks of the bundle's graphs with PyTorch on the worst clips."""
    from dfer_deploy.export.layers import localise

    manifest, worst = bundle.manifest, _worst(clips, result)
    files = bundle.image_encoder_onnx, bundle.temporal_head_onnx
    failed = any(comparison.failures for comparison in result.comparisons)
    found = localise(model, *files, worst, manifest.precision, manifest.keep_fp32, effects=failed)
    if found.failing and not failed:
        found = localise(model, *files, worst, manifest.precision, manifest.keep_fp32)
    return found


def blamed(found: Localisation, result: Verification, served: Sequence[str]) -> str:
    """What the comparison of the blocks, which are those of onnx/, says about the failures.

    Args:
        found: the comparison.
        result: the verification.
        served: names of the ways of serving that a server answered.
    """
    failed = {comparison.name for comparison in result.comparisons if comparison.failures}
    return SERVED_DIFFERS if failed and failed <= set(served) and not found.failing else str(found)


def print_localisation(bundle: Bundle, found: Localisation, where: str) -> None:
    """The table of the blocks where they were asked what they do to the logits, and what it says."""
    if found.layers[0].logits is not None:
        _print(f"blocks of {bundle.path} against PyTorch on the {found.clips} worst clips", found, where)
        return
    layer = max(found.layers, key=lambda layer: layer.own / max(layer.tolerance, 1e-30))
    stdout.print(
        f"blocks: all {len(found.layers)} are within their tolerance on {found.clips} clips; nearest to it is "
        f"{layer.block}, with an error of {layer.own:.2g} of {layer.tolerance:.2g}",
        markup=False,
    )


def bisected(
    bundle: Bundle,
    checkpoint: Path,
    model: DferClip,
    clips: LabelledClips,
    result: Verification,
    limits: Limits,
    groups: Mapping[str, str] | None,
    *,
    batch_size: int,
) -> dict[str, Any]:
    """Finds which blocks must stay fp32, prints them and the command that exports them so; for JSON.

    Too few clips to decide are no failure here: another precision would not give more of them.
    """
    from dfer_deploy.export.bisection import bisect

    truth = _RememberedTruth(result, bundle.manifest.checkpoint.sha256)

    def gate(predictor: Predictor) -> Sequence[str]:
        tried = run_verification(bundle.spec, truth, [predictor], clips, limits, batch_size=batch_size, groups=groups)
        # Clips that cannot be read are no failure here either.
        return [failure for comparison in tried.comparisons for failure in comparison.failures]

    found = bisect(model, _worst(clips, result), gate)
    _print(
        f"blocks of an fp16 export against PyTorch on {found.localisation.clips} clips",
        found.localisation,
        str(found.localisation),
    )
    stdout.print(f"bisection: {found}", markup=False)
    command = None
    if found.keep_fp32 is not None:
        command = _command(bundle, checkpoint, found)
        stdout.print(f"next:\n  {command}", markup=False)
    return {
        "keep_fp32": None if found.keep_fp32 is None else list(found.keep_fp32),
        "command": command,
        "localisation": localisation_as_json(found.localisation, str(found.localisation)),
        "trials": [{"keep_fp32": list(t.keep_fp32), "failures": list(t.failures)} for t in found.trials],
    }


@dataclass(frozen=True)
class _RememberedTruth:
    """PyTorch's answers of a verification that has just been made (a ``Truth``)."""

    result: Verification
    checkpoint_sha256: str

    @property
    def name(self) -> str:
        return self.result.truth

    def answer(self, annotations: list[Annotation], frames: Frames) -> tuple[Float32, Float32]:
        rows = [self.result.clip_names.index(annotation.name) for annotation in annotations]
        return self.result.frame_features[rows], self.result.logits[rows]

    def rounding_costs(self, frames: Frames) -> dict[Precision, Rounding]:
        return self.result.rounding


def _worst(clips: LabelledClips, result: Verification) -> Clip:
    """The clips whose logits differ most, of the first way of serving that failed; uint8 [N, 16, S, S, 3]."""
    failed = next((c for c in result.comparisons if c.failures), result.comparisons[0])
    names = set(failed.worst[:WORST_CLIPS])
    chosen = [annotation for annotation in clips.annotations if annotation.name in names]
    return np.stack([clip for _, clip in LabelledClips(chosen, clips.image_size)])


def _command(bundle: Bundle, checkpoint: Path, found: Bisection) -> str:
    manifest, prompts = bundle.manifest, bundle.spec.prompts
    words = ["dfer-deploy", "export", str(checkpoint), "-o", f"{bundle.path}-mixed", "--target", manifest.target]
    words += ["--precision", "fp16", "--name", manifest.name]
    if manifest.checkpoint.format == "reference":
        words += ["--prompt-position", prompts.position, "--class-names", ",".join(prompts.class_names)]
    if found.keep_fp32:
        words += ["--keep-fp32", ",".join(found.keep_fp32)]
    return shlex.join(words)


def _print(title: str, found: Localisation, where: str) -> None:
    columns = ("block", "precision", "own error", "tolerance", "error in the graph", "smallest cosine", "|Δlogit|", "")
    rows = [
        (
            layer.block,
            layer.precision,
            f"{layer.own:.2g}",
            f"{layer.tolerance:.2g}",
            f"{layer.relative:.2g}",
            f"{layer.cosine:.7f}",
            "" if layer.logits is None else f"{layer.logits:.2g}",
            "" if layer.within else "fails",
        )
        for layer in found.layers
    ]
    table(title, columns, rows)
    stdout.print(f"where: {where}", markup=False)
    needed = " and ".join(f"{times:.2g} in {precision}" for precision, times in found.needed.items())
    stdout.print(f"errors in multiples of what rounding costs: at most {needed}", markup=False)


def localisation_as_json(found: Localisation, where: str) -> dict[str, Any]:
    """For ``--json`` and the report; None stands for what is infinite or was not measured, and for no suspect."""
    layers = [
        {key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in values.items()}
        | {"within": layer.within}
        for layer in found.layers
        for values in [asdict(layer) | {"tolerance": layer.tolerance}]
    ]
    suspect = found.suspect.block if found.failing else None
    needed = {precision: times if math.isfinite(times) else None for precision, times in found.needed.items()}
    return {"clips": found.clips, "where": where, "suspect": suspect, "roundings": needed, "layers": layers}
