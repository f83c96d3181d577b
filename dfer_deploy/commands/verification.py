"""What ``verify`` found, as tables and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from dfer_deploy.console import stdout, table, warn
from dfer_deploy.errors import ExitCode
from dfer_deploy.metrics import Calibration, Score
from dfer_deploy.plain_data import plain
from dfer_deploy.verification.ensembles import EnsembleAnswers
from dfer_deploy.verification.folds import FORMAT, ComparedAnswers
from dfer_deploy.verification.limits import ROUNDINGS
from dfer_deploy.verification.prompt_position import ReadingCheck
from dfer_deploy.verification.statistics import Interval
from dfer_deploy.verification.verify import Verification

MOST_FLIPS = 20
"""Changed answers that the terminal shows, the surest first."""


def outcome(result: Verification, reading: ReadingCheck | None, ensembles: EnsembleAnswers | None) -> ExitCode:
    """What failed counts before what too few clips leave open."""
    if _failures(result, ensembles) or not (reading is None or reading.passed):
        return ExitCode.GATE_FAILED
    return ExitCode.UNDECIDED if result.undecided else ExitCode.DONE


def _failures(result: Verification, ensembles: EnsembleAnswers | None) -> tuple[str, ...]:
    return (*result.failures, *(() if ensembles is None else ensembles.failures))


def print_verification(
    result: Verification,
    class_names: tuple[str, ...],
    reading: ReadingCheck | None,
    ensembles: EnsembleAnswers | None,
) -> None:
    """Tables of the scores, of the decision and of the flips; then what failed or is open, and the outcome."""
    rows: list[tuple[object, ...]] = [_scored(result.truth, result.truth_score, result.truth_calibration)]
    rows += [
        (
            *_scored(c.name, c.score, c.calibration)[:4],
            f"{c.encoder_logits:.2g}",
            f"{c.head_logits:.2g}",
            f"{c.logits:.2g}",
            f"{c.logit_errors[0.99]:.2g}",
            f"{_roundings(result, c.name):.2g}",
        )
        for c in result.comparisons
    ]
    columns = ("", "UAR %", "WAR %", "ECE %", "max |Δlogit| encoder", "head", "both", "of 99 %", "roundings")
    most = f"errors of at most {ROUNDINGS[result.limits.precision]:g} roundings are accepted"
    table(f"{len(result.labels)} clips ({most})", columns, rows)
    equal = result.comparisons[0].equivalence
    units = "clips" if equal.groups is None else f"clips from {equal.groups} sources"
    table(
        f"against {result.truth}, in points, on {equal.clips} {units} (margin ±{equal.margin:g})",
        ("", "answers changed (95 %)", "lost / gained", "McNemar p", "ΔUAR (90 %)", "ΔWAR (90 %)", ""),
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
    _print_recalls(result, class_names)
    present = len(class_names) - len(result.truth_score.absent)
    if present > 1 and result.truth_score.uar <= 100 / present:
        warn(
            f"{result.truth} itself has a UAR of {result.truth_score.uar:.2f} %, no better than chance on {present} "
            "classes: are the labels and class names of the list those of the checkpoint?"
        )
    if result.truth_score.absent:
        warn(f"no clip of {', '.join(result.truth_score.absent)}: the UAR is the mean over the other classes")
    for comparison in result.comparisons:
        if comparison.flips:
            table(
                f"flips of {comparison.name}",
                ("clip", "label", "PyTorch", "answered", "PyTorch's margin (logits)"),
                [
                    (f.clip, f.label, f.expected, f.answered, f"{f.margin:.3g}")
                    for f in sorted(comparison.flips, key=lambda flip: -flip.margin)[:MOST_FLIPS]
                ],
            )
            if len(comparison.flips) > MOST_FLIPS:
                stdout.print(f"… and {len(comparison.flips) - MOST_FLIPS} more; --json names all")
    if reading is not None:
        stdout.print(f"reading of the checkpoint: {reading}", markup=False)
    if ensembles is not None and not ensembles.failures:
        stdout.print(str(ensembles), markup=False)
    for failure in _failures(result, ensembles):
        stdout.print(f"failed: {failure}", markup=False)
    for sentence in result.undecided:
        stdout.print(f"undecided: {sentence}", markup=False)
    clips = len(result.labels)
    listed = clips + len(result.unreadable)
    which = f"on {clips} clips" if clips == listed else f"on {clips} of {listed} clips"
    word = {
        ExitCode.DONE: "[green]verified[/]",
        ExitCode.GATE_FAILED: "[red]not verified[/]",
        ExitCode.UNDECIDED: "[yellow]nothing failed, but too few clips to decide[/]",
    }
    stdout.print(f"{word[outcome(result, reading, ensembles)]} {which}")


def _scored(name: str, score: Score, calibration: Calibration) -> tuple[str, ...]:
    return (name, f"{score.uar:.2f}", f"{score.war:.2f}", f"{calibration.error:.2f}", "", "", "", "", "")


def _roundings(result: Verification, name: str) -> float:
    """What a way of serving errs by, in multiples of what rounding costs the model."""
    return result.errors[name].multiples_of(result.rounding[result.limits.precision])


def _between(delta: float, interval: Interval) -> str:
    return f"{delta:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def _print_recalls(result: Verification, class_names: tuple[str, ...]) -> None:
    """Only classes whose recall changed."""
    deltas = [_recall_deltas(result.truth_score, comparison.score) for comparison in result.comparisons]
    rows = [
        (name, f"{result.truth_score.recalls[k]:.2f}", *(f"{delta[k]:+.2f}" for delta in deltas))
        for k, name in enumerate(class_names)
        if any(delta[k] for delta in deltas)
    ]
    if rows:
        names = (comparison.name for comparison in result.comparisons)
        table("recalls that changed, in points", ("", f"{result.truth} %", *names), rows)


def _recall_deltas(truth: Score, candidate: Score) -> list[float | None]:
    return [
        None if before is None or after is None else after - before
        for before, after in zip(truth.recalls, candidate.recalls, strict=True)
    ]


def verification_as_json(
    result: Verification,
    class_names: tuple[str, ...],
    reading: ReadingCheck | None,
    ensembles: EnsembleAnswers | None,
) -> dict[str, Any]:
    """Everything, for ``--json``, the report and ``--pool``; the format is ``dfer-deploy-verify/2``."""

    def scored(name: str, score: Score, calibration: Calibration) -> dict[str, Any]:
        return {
            "name": name,
            "uar": score.uar,
            "war": score.war,
            "recalls": dict(zip(class_names, score.recalls, strict=True)),
            "confusion": score.confusion.tolist(),
            "calibration_error": calibration.error,
            "calibration_bins": [asdict(of_bin) for of_bin in calibration.bins],
        }

    code = outcome(result, reading, ensembles)
    answers = ComparedAnswers(
        class_names=class_names,
        clips=result.clip_names,
        clip_hashes=result.clip_hashes,
        groups=result.groups,
        labels=result.labels,
        reference=result.logits.argmax(axis=1).astype(np.int64),
        candidates={c.name: c.answers for c in result.comparisons},
    )
    return {
        "format": FORMAT,
        "passed": code != ExitCode.GATE_FAILED,
        "exit_code": int(code),
        "failures": [
            *_failures(result, ensembles),
            *([] if reading is None or reading.passed else [f"reading of the checkpoint: {reading}"]),
        ],
        "undecided": list(result.undecided),
        "clips": len(result.labels),
        "class_names": list(class_names),
        "limits": vars(result.limits) | {"roundings": ROUNDINGS[result.limits.precision]},
        "rounding": {
            precision: {what: _finite(error) for what, error in vars(cost).items()}
            for precision, cost in result.rounding.items()
        },
        "truth": scored(result.truth, result.truth_score, result.truth_calibration),
        "comparisons": [
            scored(c.name, c.score, c.calibration)
            | {
                "recall_deltas": dict(zip(class_names, _recall_deltas(result.truth_score, c.score), strict=True)),
                "max_logit_difference": _finite(c.logits),
                "max_logit_difference_encoder": _finite(c.encoder_logits),
                "max_logit_difference_head": _finite(c.head_logits),
                "errors": {what: _finite(error) for what, error in vars(result.errors[c.name]).items()},
                "roundings": _finite(_roundings(result, c.name)),
                "logit_errors": {f"{quantile:g}": _finite(error) for quantile, error in c.logit_errors.items()},
                "equivalence": asdict(c.equivalence),
                "flip_rate": asdict(c.flip_rate),
                "flips": plain([asdict(flip) for flip in c.flips]),
                "failures": list(c.failures),
                "undecided": list(c.undecided),
            }
            for c in result.comparisons
        ],
        "ensembles": {}
        if ensembles is None
        else {name: _finite(difference) for name, difference in ensembles.differences.items()},
        "unreadable": result.unreadable,
        "reading": None if reading is None else vars(reading) | {"passed": reading.passed},
        "answers": answers.to_dict(),
    }


def _finite(value: float) -> float | None:
    """JSON knows no infinity: None where an answer was not finite."""
    return value if math.isfinite(value) else None
