"""``dfer-deploy verify``"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfer_deploy.baseline import PredictorTruth, Truth, load_baseline
from dfer_deploy.bundle import Bundle, open_bundle
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.commands.options import bundle_argument, data_root_option, json_option
from dfer_deploy.commands.runtimes import choose_contestants, host_code_option, open_predictors, runtime_option
from dfer_deploy.commands.serving import served_bundle
from dfer_deploy.console import stdout, step, table, warn
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.files import write_json
from dfer_deploy.reading_check import ReadingCheck, check_reading, is_own_test_list
from dfer_deploy.specs import PROMPT_POSITIONS
from dfer_deploy.triton.client import TritonPredictor
from dfer_deploy.verify import LIMITS, Verification
from dfer_deploy.verify import verify as run_verification

if TYPE_CHECKING:
    from dfer_deploy.runtimes.torch import TorchPredictor


@click.command()
@bundle_argument
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Compare with this checkpoint in PyTorch.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Compare with answers that PyTorch gave elsewhere.")
@click.option("--save-baseline", type=click.Path(path_type=Path), help="Save PyTorch's answers for --baseline.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Annotation list with labelled clips.")
@data_root_option
@click.option("--url", help="Verify this server (grpc://… or http://…) instead of starting one.")
@click.option("--in-process", is_flag=True, help="Leave the server away: only what runs in this process.")
@runtime_option
@host_code_option
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Clips in one request.")
@click.option("--max-logit-error", type=float, help="Instead of the precision's limit (fp32 0.01, fp16 2.5).")
@click.option("--max-points", type=float, default=0.5, show_default=True, help="Accepted difference of UAR and WAR.")
@click.option(
    "--own-test-list/--other-list",
    default=None,
    help="Whether LIST is the one on which a reference checkpoint's best_acc was measured; by default this is taken "
    "to be so if best_acc is a whole number of hits out of its clips.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    bundle: Path,
    checkpoint: Path | None,
    baseline: Path | None,
    save_baseline: Path | None,
    data: Path,
    data_root: str | None,
    url: str | None,
    in_process: bool,
    chosen: tuple[str, ...],
    allow_host_code: bool,
    batch_size: int,
    max_logit_error: float | None,
    max_points: float,
    own_test_list: bool | None,
    json_file: Path | None,
) -> None:
    """Prove on labelled clips that BUNDLE answers like its checkpoint: in process and served.

    In process are onnxruntime, with CUDA where it can, and the TensorRT engines where they are built and run here.
    Exits with 0 if all that was compared does and with 1 if it does not.
    """
    if (checkpoint is None) == (baseline is None):
        raise click.UsageError("give either --checkpoint CKPT or --baseline FILE")
    if url and in_process:
        raise click.UsageError("--url names a server and --in-process leaves it away; choose one")
    if save_baseline and baseline:
        raise click.UsageError("--save-baseline saves PyTorch's answers and needs --checkpoint")
    opened = open_bundle(bundle)
    contestants = choose_contestants(opened, chosen, url=url, in_process=in_process, host_code_allowed=allow_host_code)
    spec = opened.spec
    default = LIMITS[opened.manifest.precision]
    limits = replace(default, points=max_points, logits=default.logits if max_logit_error is None else max_logit_error)
    clips = LabelledClips.from_list(data, spec.prompts.num_classes, spec.clip.vision.image_size, data_root)
    torch_predictor: TorchPredictor | None = None
    with ExitStack() as stack:
        truth: Truth
        if checkpoint is not None:
            torch_predictor, truth = _torch_truth(checkpoint, opened)
        else:
            assert baseline is not None  # noqa: S101 - checked above, for mypy
            truth = load_baseline(baseline, spec)
        if truth.checkpoint_sha256 != opened.manifest.checkpoint.sha256:
            warn(
                f"{bundle} was exported from another checkpoint (SHA-256 {opened.manifest.checkpoint.sha256[:12]}…, "
                f"not {truth.checkpoint_sha256[:12]}…); the comparison tells whether that matters"
            )
        predictors = open_predictors(stack, opened, contestants, host_code_allowed=allow_host_code)
        on_the_cpu = [p.name for r, p in zip(contestants.runtimes, predictors, strict=True) if r == "onnxruntime-cpu"]
        if contestants.served:
            address = url or stack.enter_context(served_bundle(opened, host_code_allowed=allow_host_code)).grpc_url
            client = stack.enter_context(TritonPredictor(address, opened.contract))
            _check_labels(client, spec.prompts.class_names)
            predictors.append(client)
            if opened.manifest.target == "embedded":
                on_the_cpu.append(client.name)
        result = run_verification(
            spec,
            truth,
            predictors,
            clips,
            limits,
            same_graphs=on_the_cpu,
            batch_size=batch_size,
            baseline_file=save_baseline,
        )
    reading = _reading(opened, torch_predictor, result, own_test_list)
    passed = not result.failures and (reading is None or reading.passed)
    _print(result, reading, passed)
    for what, reason in contestants.left_out.items():
        stdout.print(f"not verified: {what}, since {reason}", markup=False)
    if save_baseline:
        stdout.print(f"saved PyTorch's answers to {save_baseline}", markup=False)
    if json_file:
        write_json(json_file, _as_json(result, reading, passed, opened) | {"left_out": contestants.left_out})
    if not passed:
        ctx.exit(ExitCode.GATE_FAILED)


def _torch_truth(path: Path, bundle: Bundle) -> tuple[TorchPredictor, Truth]:
    from dfer_deploy.checkpoint import load_checkpoint
    from dfer_deploy.files import sha256_of_file
    from dfer_deploy.runtimes.torch import TorchPredictor

    with step(f"read {path}"):
        prompts = bundle.spec.prompts
        loaded = load_checkpoint(path)
        if loaded.spec.prompts.num_classes != prompts.num_classes or loaded.spec.clip != bundle.spec.clip:
            raise DferDeployError(
                f"{path} has other sizes or classes than {bundle.path}; verify with its own checkpoint"
            )
        if loaded.format == "reference":
            # What the file does not say is taken as it was at the export, so that the same reading is compared.
            assumed = replace(loaded.spec.prompts, position=prompts.position, class_names=prompts.class_names)
            loaded = replace(loaded, spec=replace(loaded.spec, prompts=assumed))
        predictor = TorchPredictor(loaded.build_model())
    return predictor, PredictorTruth(predictor, sha256_of_file(path))


def _check_labels(client: TritonPredictor, class_names: tuple[str, ...]) -> None:
    labels = client.labels()
    if labels != class_names:
        raise DferDeployError(
            f"the server names the classes {', '.join(labels)}, the bundle {', '.join(class_names)}; "
            "it serves another model"
        )


def _reading(
    bundle: Bundle, predictor: TorchPredictor | None, result: Verification, own_test_list: bool | None
) -> ReadingCheck | None:
    """Checks how the reference checkpoint was read, where its own test list is at hand."""
    best_acc = bundle.manifest.checkpoint.best_acc
    if best_acc is None or own_test_list is False:
        return None
    clips = len(result.labels)
    skipped = ""
    if result.unreadable:
        skipped = f"{len(result.unreadable)} clips of the list are missing"
    elif own_test_list is None and not is_own_test_list(best_acc, clips):
        skipped = f"that is no whole number of {clips} clips, so this is not its own test list"
    if skipped:
        stdout.print(f"reading of the checkpoint: not checked; it states {best_acc:.2f} % WAR, but {skipped}")
        return None
    logits = {bundle.spec.prompts.position: result.logits}
    if predictor is not None:
        logits = {p: predictor.classify(result.frame_features, p).logits for p in PROMPT_POSITIONS}
    return check_reading(logits, result.labels, best_acc, bundle.spec.prompts.position)


def _print(result: Verification, reading: ReadingCheck | None, passed: bool) -> None:
    rows: list[tuple[object, ...]] = [
        (result.truth, f"{result.truth_score.uar:.2f}", f"{result.truth_score.war:.2f}", "", "", "", "")
    ]
    rows += [
        (
            c.name,
            f"{c.score.uar:.2f}",
            f"{c.score.war:.2f}",
            f"{len(c.flips)} of {len(result.labels)}",
            f"{c.encoder_logits:.2g}",
            f"{c.head_logits:.2g}",
            f"{c.logits:.2g}",
        )
        for c in result.comparisons
    ]
    columns = ("", "UAR %", "WAR %", "flips", "max |Δlogit| encoder", "head", "both")
    table(f"{len(result.labels)} clips", columns, rows)
    if result.truth_score.absent:
        warn(f"no clip of {', '.join(result.truth_score.absent)}: the UAR is the mean over the other classes")
    for comparison in result.comparisons:
        if comparison.flips:
            table(
                f"flips of {comparison.name}",
                ("clip", "label", "PyTorch", "answered", "PyTorch's margin (logits)"),
                [(f.clip, f.label, f.expected, f.answered, f"{f.margin:.3g}") for f in comparison.flips],
            )
    if reading is not None:
        stdout.print(f"reading of the checkpoint: {reading}", markup=False)
    for failure in result.failures:
        stdout.print(f"failed: {failure}", markup=False)
    clips = len(result.labels)
    listed = clips + len(result.unreadable)
    which = f"on {clips} clips" if clips == listed else f"on {clips} of {listed} clips"
    stdout.print(f"[green]verified[/] {which}" if passed else f"[red]not verified[/] {which}")


def _as_json(result: Verification, reading: ReadingCheck | None, passed: bool, bundle: Bundle) -> dict[str, Any]:
    def scored(name: str, score: Any) -> dict[str, Any]:
        return {
            "name": name,
            "uar": score.uar,
            "war": score.war,
            "recalls": dict(zip(bundle.spec.prompts.class_names, score.recalls, strict=True)),
            "confusion": score.confusion.tolist(),
        }

    return {
        "passed": passed,
        "clips": len(result.labels),
        "checkpoint_sha256": bundle.manifest.checkpoint.sha256,
        "limits": vars(result.limits),
        "truth": scored(result.truth, result.truth_score),
        "comparisons": [
            scored(c.name, c.score)
            | {
                "max_logit_difference": _finite(c.logits),
                "max_logit_difference_encoder": _finite(c.encoder_logits),
                "max_logit_difference_head": _finite(c.head_logits),
                "flips": [vars(flip) for flip in c.flips],
                "failures": list(c.failures),
            }
            for c in result.comparisons
        ],
        "unreadable": result.unreadable,
        "reading": None if reading is None else vars(reading) | {"passed": reading.passed},
    }


def _finite(value: float) -> float | None:
    """JSON knows no infinity: None where an answer was not finite."""
    return value if math.isfinite(value) else None
