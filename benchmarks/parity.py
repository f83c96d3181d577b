"""Compare every target in every precision with PyTorch, in one table.

    python benchmarks/parity.py [--quick] [--targets embedded onnxruntime tensorrt] [--json FILE] [--plot PNG]

Each bundle is exported and answers through everything that this machine has for it: onnxruntime on CPU and CUDA, built
TensorRT engines, and its own Triton over gRPC and HTTP. The table also lists what cannot run here, with the reason.
Differences are the largest over drawn clips, in batches of one and of all. They are compared with the limits of logits
and, on the first clips, with what rounding costs the same model. The weights are random, so this shows whether the
arithmetic is right, and nothing about real faces; ``dfer-deploy verify`` does that.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from common import COLOURS, MARKERS, figure, parsed, parser, positive, write
from random_model import random_checkpoint

from dfer_deploy.api.serving import installation_for, served_bundle
from dfer_deploy.bundles.bundle import TARGETS, Bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import table
from dfer_deploy.errors import DferDeployError, RuntimeUnavailableError
from dfer_deploy.runtimes.available import RUNTIMES, open_predictor, tensorrt_obstacle
from dfer_deploy.runtimes.predictor import Float32, Frames, Predictor
from dfer_deploy.specs import Precision
from dfer_deploy.verification.limits import LIMITS, ROUNDINGS, Rounding
from dfer_deploy.verification.verify import FEW_CLIPS


@dataclass(frozen=True)
class Row:
    """The results of one way of running one bundle.

    Attributes:
        target: target of the bundle.
        precision: precision of its graphs.
        way: runtime or protocol.
        size_mb: size of both ONNX files, or of both engines, in 10^6 bytes.
        feature_error: largest error of a frame feature, relative to the largest feature.
        logit_error: largest error of a logit of both graphs together.
        roundings: errors of the frame features and of the temporal head's logits on the first clips, as root mean
            squares, in multiples of what rounding costs the model; the larger of both.
        probability_error: largest error of a probability.
        softmax_error: largest difference of a probability from the softmax of the logits beside it.
        agreement: share of the clips with PyTorch's answer, in [0, 1].
        within_limit: whether logits, roundings and softmax are within the limits of ``verify``; None if nothing ran.
        left_out: why nothing ran; empty if it did.
    """

    target: str
    precision: Precision
    way: str
    size_mb: float
    feature_error: float | None = None
    logit_error: float | None = None
    roundings: float | None = None
    probability_error: float | None = None
    softmax_error: float | None = None
    agreement: float | None = None
    within_limit: bool | None = None
    left_out: str = ""


def main() -> None:
    options = parser(__file__, __doc__, rounds=False)
    options.add_argument("--targets", nargs="+", choices=TARGETS, help="which (default: all, quick: embedded)")
    options.add_argument("--clips", type=positive, help="how many (default: 16)", default=16)
    arguments = parsed(options)
    with tempfile.TemporaryDirectory() as folder:
        targets = arguments.targets or (["embedded"] if arguments.quick else list(TARGETS))
        rows = list(measure(Path(folder), targets, arguments.clips, quick=arguments.quick))
    ran = [row for row in rows if row.logit_error is not None]
    table(
        f"against PyTorch in fp32, {arguments.clips} drawn clips, random weights",
        (
            "target", "precision", "way", "MB", "features", "logits", "limit", "roundings", "limit", "probabilities",
            "agreement",
        ),
        [
            (row.target, row.precision, row.way, f"{row.size_mb:.1f}", f"{row.feature_error:.1e}",
             f"{row.logit_error:.1e}", f"{LIMITS[row.precision].logits:g}", f"{row.roundings:.2g}",
             f"{ROUNDINGS[row.precision]:g}", f"{row.probability_error:.1e}", f"{row.agreement:.1%}")
            for row in ran
        ],
    )  # fmt: skip
    table(
        "not run here",
        ("target", "precision", "way", "reason"),
        [(row.target, row.precision, row.way, row.left_out) for row in rows if row.left_out],
    )
    picture, (axes,) = figure(
        "Largest logit error against PyTorch", 1, width=8.0, height=1.5 + 0.25 * len(ran), quick=arguments.quick
    )
    draw(axes, ran)
    write(arguments, {"clips": arguments.clips, "rows": [dataclasses.asdict(row) for row in rows]}, picture)
    outside = [row for row in ran if not row.within_limit]
    if outside:
        raise SystemExit(f"{len(outside)} row(s) leave the limit of verify")


def measure(folder: Path, targets: list[str], count: int, *, quick: bool) -> Iterator[Row]:
    """Export every target in every precision into ``folder``, and measure every way of running it."""
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.export.export_options import ExportOptions
    from dfer_deploy.export.pipeline import export_to_folder
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor
    from dfer_deploy.verification.rounding import rounding_costs

    checkpoint = random_checkpoint(folder, quick=quick)
    with TorchPredictor(load_checkpoint(checkpoint).build_model()) as truth:
        clips = drawn_clips(count, truth.model.spec.clip.vision.image_size)
        costs = rounding_costs(truth.model, clips[:FEW_CLIPS])
        for target in TARGETS:
            for precision in get_args(Precision) if target in targets else ():
                options = ExportOptions(target, precision=precision)
                bundle = export_to_folder(checkpoint, folder / f"{target}.{precision}", options)[0]
                yield from compare(bundle, truth, clips, costs[precision])


def compare(bundle: Bundle, truth: Predictor, clips: Frames, cost: Rounding) -> Iterator[Row]:
    """Yield one row for every way of running a bundle, including those that this machine does not have."""
    manifest = bundle.manifest
    size = sum(path.stat().st_size for path in (bundle.image_encoder_onnx, bundle.temporal_head_onnx)) / 1e6
    features, logits = truth.encode(clips), truth.predict(clips).logits

    def row(predictor: Predictor, way: str) -> Row:
        seen = differences(predictor, clips, features, logits, cost)
        return Row(
            manifest.target, manifest.precision, way, size,
            feature_error=seen["feature_error"],
            logit_error=seen["logit_error"],
            roundings=seen["roundings"],
            probability_error=seen["probability_error"],
            softmax_error=seen["softmax_error"],
            agreement=seen["agreement"],
            within_limit=within_limit(seen, manifest.precision),
        )  # fmt: skip

    for runtime in RUNTIMES:
        if runtime == "tensorrt" and manifest.target != "tensorrt":
            continue
        try:
            if runtime == "tensorrt" and (obstacle := tensorrt_obstacle(bundle)):
                raise RuntimeUnavailableError(obstacle)
            with open_predictor(runtime, bundle) as predictor:
                yield row(predictor, runtime)
        except DferDeployError as error:
            yield Row(manifest.target, manifest.precision, runtime, size, left_out=str(error))
    try:
        installation = installation_for(bundle)
    except DferDeployError as error:
        yield Row(manifest.target, manifest.precision, "Triton", size, left_out=str(error))
        return
    with ExitStack() as stack:
        endpoints = stack.enter_context(served_bundle(bundle, installation))
        for way, url in (("Triton gRPC", endpoints.grpc_url), ("Triton HTTP", endpoints.http_url)):
            yield row(stack.enter_context(TritonPredictor(url, bundle.contract)), way)


def within_limit(seen: dict[str, float], precision: Precision) -> bool:
    """Return whether the result of ``differences`` is accepted. Values that are not finite never are."""
    limits = LIMITS[precision]
    return (
        seen["logit_error"] <= limits.logits
        and seen["roundings"] <= ROUNDINGS[precision]
        and seen["softmax_error"] <= limits.probabilities
    )


def differences(
    predictor: Predictor, clips: Frames, features: Float32, logits: Float32, cost: Rounding
) -> dict[str, float]:
    """Return the largest differences of a predictor from PyTorch, with batches of one clip and of all clips.

    Args:
        predictor: one way of serving.
        clips: uint8 [N, T, S, S, 3].
        features: PyTorch's frame features.
        logits: PyTorch's logits.
        cost: what rounding costs the model on the first clips.
    """
    from dfer_deploy.metrics import softmax

    batch, single = predictor.predict(clips), predictor.predict(clips[:1])
    # An average would hide a difference between batches; a maximum does not.
    answers = [(batch.logits, batch.probabilities, logits), (single.logits, single.probabilities, logits[:1])]
    scale = float(np.abs(features).max())
    errors = predictor.encode(clips) - features
    head = predictor.classify(features[:FEW_CLIPS]).logits - logits[:FEW_CLIPS]
    return {
        "feature_error": float(np.abs(errors).max()) / scale,
        "logit_error": float(np.max([np.abs(found - expected).max() for found, _, expected in answers])),
        "roundings": Rounding.of(errors[:FEW_CLIPS], head).multiples_of(cost),
        "probability_error": float(np.max([np.abs(found - softmax(right)).max() for _, found, right in answers])),
        "softmax_error": float(np.max([np.abs(found - softmax(own)).max() for own, found, _ in answers])),
        "agreement": float((batch.logits.argmax(axis=1) == logits.argmax(axis=1)).mean()),
    }


def draw(axes: Any, rows: list[Row]) -> None:
    """Draw a point for each row on a logarithmic axis, and the limit of its precision."""
    precisions = get_args(Precision)
    for place, row in enumerate(rows):
        index = precisions.index(row.precision)
        label = row.precision if row.precision not in [other.precision for other in rows[:place]] else None
        axes.plot([max(row.logit_error or 0.0, 1e-8)], [place], MARKERS[index], color=COLOURS[index], label=label)
        axes.plot([LIMITS[row.precision].logits], [place], "|", color="black", markersize=11)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{row.target} {row.precision}, {row.way}" for row in rows], size=8)
    axes.invert_yaxis()
    axes.set_xlabel("logits (bar: the limit of verify)")
    axes.grid(axis="x", color="0.9")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


if __name__ == "__main__":
    main()
