"""The result of ``verify`` as tables."""

from __future__ import annotations

import math
from pathlib import Path

from dfer_deploy.console import stdout, table, warn
from dfer_deploy.errors import ExitCode
from dfer_deploy.verification.blocks import Bisection, BlockComparison
from dfer_deploy.verification.statistics import Interval
from dfer_deploy.verification.verification_result import Comparison, ScoredAnswers, VerificationResult

MAX_FLIPS = 20
"""Largest number of changed answers that the terminal shows, the surest first."""


def print_verification(result: VerificationResult, bundle: Path) -> None:
    """Print tables of the scores, the decision and the changed answers; then failures, open questions and the outcome.

    A bisection takes minutes and follows later; see ``print_bisection``.

    Args:
        result: the result of the verification.
        bundle: the bundle's folder, for a title.
    """
    _print_scores(result)
    _print_decision(result)
    _print_recalls(result)
    _warn_about_list(result)
    for comparison in result.comparisons:
        _print_flips(comparison)
    if result.reading is not None:
        stdout.print(f"reading of the checkpoint: {result.reading}", markup=False)
    _print_ensembles(result)
    for failure in result.failures:
        stdout.print(f"failed: {failure}", markup=False)
    for sentence in result.undecided:
        stdout.print(f"undecided: {sentence}", markup=False)
    listed = result.clips + len(result.unreadable)
    which = f"on {result.clips} clips" if result.clips == listed else f"on {result.clips} of {listed} clips"
    word = {
        ExitCode.DONE: "[green]verified[/]",
        ExitCode.GATE_FAILED: "[red]not verified[/]",
        ExitCode.UNDECIDED: "[yellow]nothing failed, but too few clips to decide[/]",
    }
    stdout.print(f"{word[result.exit_code]} {which}")
    if result.localisation is not None:
        print_blocks(bundle, result.localisation)
    for what, reason in result.left_out.items():
        stdout.print(f"not verified: {what}, since {reason}", markup=False)


def _print_scores(result: VerificationResult) -> None:
    rows: list[tuple[object, ...]] = [(*_scored(result.truth), "", "", "", "", "")]
    rows += [
        (
            *_scored(c),
            f"{c.max_logit_difference_encoder:.2g}",
            f"{c.max_logit_difference_head:.2g}",
            f"{c.max_logit_difference:.2g}",
            f"{c.logit_errors.get('0.99', math.nan):.2g}",
            f"{c.roundings:.2g}",
        )
        for c in result.comparisons
    ]
    columns = ("", "UAR %", "WAR %", "ECE %", "max |Δlogit| encoder", "head", "both", "of 99 %", "roundings")
    most = f"errors of at most {result.limits.roundings:g} roundings are accepted"
    table(f"{result.clips} clips ({most})", columns, rows)


def _print_decision(result: VerificationResult) -> None:
    equal = result.comparisons[0].equivalence
    units = "clips" if equal.groups is None else f"clips from {equal.groups} sources"
    table(
        f"against {result.truth.name}, in points, on {equal.clips} {units} (margin ±{equal.margin:g})",
        ("", "answers changed (95 %)", "lost / gained", "McNemar p", "ΔUAR (90 %)", "ΔWAR (90 %)", "verdict"),
        [
            (
                c.name,
                c.flip_rate,
                f"{c.equivalence.lost} / {c.equivalence.gained}",
                f"{c.equivalence.mcnemar_p:.2g}",
                _between(c.equivalence.delta_uar, c.equivalence.interval_uar),
                _between(c.equivalence.delta_war, c.equivalence.interval_war),
                c.equivalence.verdict,
            )
            for c in result.comparisons
        ],
    )


def _warn_about_list(result: VerificationResult) -> None:
    truth = result.truth
    present = len(result.class_names) - len(truth.absent)
    if present > 1 and truth.uar <= 100 / present:
        warn(
            f"{truth.name} itself has a UAR of {truth.uar:.2f} %, no better than chance on {present} classes: are the "
            "labels and class names of the list those of the checkpoint?"
        )
    if truth.absent:
        warn(f"no clip of {', '.join(truth.absent)}: the UAR is the mean over the other classes")


def _print_flips(comparison: Comparison) -> None:
    if not comparison.flips:
        return
    table(
        f"flips of {comparison.name}",
        ("clip", "label", "PyTorch", "answered", "PyTorch's margin (logits)"),
        [
            (f.clip, f.label, f.expected, f.answered, f"{f.margin:.3g}")
            for f in sorted(comparison.flips, key=lambda flip: -flip.margin)[:MAX_FLIPS]
        ],
    )
    if len(comparison.flips) > MAX_FLIPS:
        stdout.print(f"… and {len(comparison.flips) - MAX_FLIPS} more; --json names all")


def _print_ensembles(result: VerificationResult) -> None:
    most = max(result.ensembles.values(), default=math.inf)
    if math.isfinite(most):
        name = result.provenance.name
        stdout.print(f"streams and encoded images differ from {name} by at most {most:.2g} logits", markup=False)


def _scored(answers: ScoredAnswers) -> tuple[str, ...]:
    return answers.name, f"{answers.uar:.2f}", f"{answers.war:.2f}", f"{answers.calibration_error:.2f}"


def _between(delta: float, interval: Interval) -> str:
    return f"{delta:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def _print_recalls(result: VerificationResult) -> None:
    """Print the classes whose recall changed."""
    deltas = [comparison.recall_deltas(result.truth) for comparison in result.comparisons]
    rows = [
        (name, f"{result.truth.recalls[name]:.2f}", *(f"{delta[name]:+.2f}" for delta in deltas))
        for name in result.class_names
        if any(delta[name] for delta in deltas)
    ]
    if rows:
        names = (comparison.name for comparison in result.comparisons)
        table("recalls that changed, in points", ("", f"{result.truth.name} %", *names), rows)


def print_blocks(bundle: Path, found: BlockComparison) -> None:
    """Print a table of the blocks if their effect on the logits was measured, else that all are within tolerance."""
    if found.layers[0].logits is not None:
        _print_layers(f"blocks of {bundle} against PyTorch on the {found.clips} worst clips", found)
        return
    layer = max(found.layers, key=lambda layer: layer.own / max(layer.tolerance, 1e-30))
    stdout.print(
        f"blocks: all {len(found.layers)} are within their tolerance on {found.clips} clips; nearest to it is "
        f"{layer.block}, with an error of {layer.own:.2g} of {layer.tolerance:.2g}",
        markup=False,
    )


def print_bisection(found: Bisection) -> None:
    """Print the blocks that must stay fp32, and the command that exports the checkpoint with them."""
    blocks = found.localisation
    _print_layers(f"blocks of an fp16 export against PyTorch on {blocks.clips} clips", blocks)
    stdout.print(f"bisection: {found}", markup=False)
    if found.command is not None:
        stdout.print(f"next:\n  {found.command}", markup=False)


def _print_layers(title: str, found: BlockComparison) -> None:
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
    stdout.print(f"where: {found.where or found}", markup=False)
    needed = " and ".join(f"{times:.2g} in {precision}" for precision, times in found.needed.items())
    stdout.print(f"errors in multiples of what rounding costs: at most {needed}", markup=False)
