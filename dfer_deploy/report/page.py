"""Write the report as one HTML file: no network, no script; for paper and phones, light and dark.

Clip names, class names and paths come from untrusted files. The template escapes everything except our own charts.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dfer_deploy import __version__
from dfer_deploy.errors import ResultError
from dfer_deploy.files import atomic_file, json_text
from dfer_deploy.measurement.bench_result import BenchResult
from dfer_deploy.metrics import CalibrationBin, Int64
from dfer_deploy.report import charts
from dfer_deploy.report.changes import changed_answers
from dfer_deploy.verification.blocks import Bisection
from dfer_deploy.verification.bounds import MAX_POINTS
from dfer_deploy.verification.provenance import CHECKPOINT, COMPARED_CHECKPOINT, MANIFEST
from dfer_deploy.verification.verification_result import Comparison, VerificationResult

_MAX_EMBEDDED_BYTES = 1 << 20
"""Largest JSON that is embedded in the page. A larger one stays in the file that ``--json`` wrote."""

_MAX_UNREADABLE = 100
"""Largest number of unreadable clips that are named, so that the page stays readable."""

_MAX_DRAWN_CLASSES = 30
"""Largest number of classes of a drawn matrix. A larger one has too many cells to read and takes long to draw; its
largest confusions are listed instead."""

_MAX_CONFUSIONS = 20
"""Largest number of confusions that are listed for a matrix that is not drawn."""

_STATES: dict[str, dict[str, str]] = {
    "equivalent": {"word": "equivalent", "sign": "✓", "look": "good"},
    "different": {"word": "different", "sign": "✗", "look": "bad"},
    "undecided": {"word": "undecided", "sign": "?", "look": "open"},
    "failed": {"word": "failed", "sign": "✗", "look": "bad"},
}


def write_report(
    path: Path,
    result: VerificationResult,
    *,
    bench: BenchResult | None = None,
    clips: Mapping[str, Path] | None = None,
) -> None:
    """Write the report atomically.

    Args:
        path: path of the HTML file.
        result: the result of ``verify``.
        bench: a measurement of the same bundle, or None.
        clips: paths of the clips on this machine, by their names in the list. Some frames of those whose answer changed
            are shown if they can be read.

    Raises:
        DferDeployError: the results are of different bundles, a text is not Unicode, or the file cannot be written.
    """
    if bench is not None:
        _check_same_bundle(result, bench)
    data = _as_json("verification", result.to_dict())
    bench_data = None if bench is None else _as_json("benchmark", bench.to_dict())
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = _breakable
    template = environment.from_string(files("dfer_deploy.report").joinpath("report.html").read_text("utf-8"))
    page = template.render(
        _summary(result)
        | _charts(result, bench)
        | _recalls(result)
        | _blocks(result)
        | changed_answers(result, clips or {})
        | _origin(result, data, bench_data)
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _breakable(name: str) -> Markup:
    """Return a name that may be wrapped after a slash, a dot, an underscore or a hyphen."""
    return Markup("<wbr>").join(re.split(r"(?<=[/._-])", name))


def _as_json(what: str, values: Mapping[str, Any]) -> bytes:
    """Return the JSON in the form in which ``--json`` writes it."""
    try:
        return json_text(values).encode()
    except (ValueError, RecursionError) as error:  # a number that is not finite, or half of a surrogate pair
        raise ResultError(f"the {what} holds what JSON in UTF-8 cannot ({error}); make it again") from error


def _check_same_bundle(result: VerificationResult, bench: BenchResult) -> None:
    verified = result.provenance.sha256(MANIFEST) or ""
    measured = bench.subject.manifest_sha256
    if measured != verified:
        raise ResultError(
            f"the benchmark is of a bundle with the manifest {measured[:12]}…, the verification of one with "
            f"{f'{verified[:12]}…' if verified else 'none'}; measure the bundle that was verified"
        )


def _summary(result: VerificationResult) -> dict[str, Any]:
    source = result.provenance
    exported, compared = source.sha256(CHECKPOINT), source.sha256(COMPARED_CHECKPOINT)
    margin = result.comparisons[0].equivalence.margin
    in_process = "Triton" in result.left_out
    if result.failures:
        found = {"word": "Not verified", "sign": "✗", "look": "bad"}
        sentence = (
            f"What {'runs in process' if in_process else 'is served'} does not answer as {result.truth.name} does."
            if any(candidate.failures for candidate in result.comparisons)
            else f"Every answer is within its limits of {result.truth.name}'s, but something else failed."
        )
    elif result.undecided:
        found = {"word": "Undecided", "sign": "?", "look": "open"}
        sentence = f"Nothing failed, but {result.clips:,} clips are too few to decide."
    else:
        found = {"word": "Verified", "sign": "✓", "look": "good"}
        asked, not_asked = ("in process", "; no server was run") if in_process else ("of every way of serving", "")
        sentence = (
            f"UAR and WAR {asked} are within ±{margin:g} points of {result.truth.name}'s, and no error is outside its "
            f"limit{not_asked}."
        )
    return {
        "result": result,
        "title": f"{source.name}, version {source.version}",
        "verdict": found | {"sentence": sentence},
        "facts": f"{result.clips:,} clips · {len(result.class_names)} classes · {source.precision} · "
        f"target {source.target} · checkpoint {source.chain[0].sha256[:12]}…",
        "other_checkpoint": (exported, compared) if compared not in (None, exported) else None,
        "chance": _chance(result),
        "calibration_errors": [
            (answers.name, f"{answers.calibration_error:.2f} %") for answers in (result.truth, *result.comparisons)
        ],
        "rows": [_row(candidate) for candidate in result.comparisons],
        "accepted": _accepted(result),
        "decided_on": _decided_on(result),
        "unreadable": list(result.unreadable.items())[:_MAX_UNREADABLE],
        "unnamed_unreadable": max(0, len(result.unreadable) - _MAX_UNREADABLE),
        "dfer_deploy_version": __version__,
    }


def _chance(result: VerificationResult) -> int | None:
    """Return the number of classes if the reference itself is not better than chance, else None."""
    classes = sum(result.truth.recalls.get(name) is not None for name in result.class_names)
    return classes if classes > 1 and result.truth.uar <= 100 / classes else None


def _row(candidate: Comparison) -> dict[str, Any]:
    found = candidate.equivalence
    war, uar = found.interval_war, found.interval_uar
    return {
        "name": candidate.name,
        "state": _STATES["failed" if candidate.failures else "undecided" if candidate.undecided else found.verdict],
        "equivalence": _STATES[found.verdict],
        "uar": f"{candidate.uar:.2f}",
        "war": f"{candidate.war:.2f}",
        "flips": str(candidate.flip_rate),
        "changes": f"{found.lost} / {found.gained}",
        "mcnemar": f"{found.mcnemar_p:.2g}",
        "error": _error(candidate.max_logit_difference),
        "encoder_error": _error(candidate.max_logit_difference_encoder),
        "head_error": _error(candidate.max_logit_difference_head),
        "roundings": _error(candidate.roundings),
        "delta_uar": _points(found.delta_uar),
        "delta_war": _points(found.delta_war),
        "interval_uar": f"{_points(uar.low)} to {_points(uar.high)}",
        "interval_war": f"{_points(war.low)} to {_points(war.high)}",
        "method": war.method,
    }


def _error(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "not finite"


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _accepted(result: VerificationResult) -> list[str]:
    """Return one sentence for each limit that can be exceeded."""
    limits, name = result.limits, result.truth.name
    sentences = [
        f"UAR and WAR differ from {name}'s by at most {limits.points:g} points, on these clips and on similar ones.",
        f"A logit differs by at most {limits.logits:g}, and one of the temporal head alone by {limits.head_logits:g}.",
        f"Errors of frame features and of the temporal head are at most {limits.roundings:g} times what rounding to "
        f"{result.provenance.precision} costs the same model in {name}.",
        f"An answer changes only where {name}'s two largest logits are closer than {limits.flip_margin:g}.",
        f"At most {100 * limits.unreadable:g} % of the clips cannot be read.",
    ]
    if limits.flips < 1:
        sentences.append(f"At most {100 * limits.flips:g} % of all answers change.")
    if limits.recall_drop < MAX_POINTS:
        sentences.append(f"No class's recall falls by more than {limits.recall_drop:g} points.")
    if limits.calibration_rise < MAX_POINTS:
        sentences.append(f"The calibration error rises by at most {limits.calibration_rise:g} points.")
    return sentences


def _decided_on(result: VerificationResult) -> str:
    """Return which clips decided, if they are not just those of this verification."""
    found = result.comparisons[0].equivalence
    which = ", those of earlier verifications included" if found.clips > result.clips else ""
    which = f" of {result.clips:,}: those with the same frames count once" if found.clips < result.clips else which
    sources = "" if found.groups is None else f" of {found.groups:,} sources, which count as independent"
    return f"Decided on {found.clips:,} clips{sources}{which}." if which or sources else ""


def _charts(result: VerificationResult, bench: BenchResult | None) -> dict[str, Any]:
    def drawn(svg: str) -> Markup:
        return Markup(svg)  # noqa: S704 - our own drawing, in which every text is escaped

    rows = [
        (candidate.name, measure, difference, interval)
        for candidate in result.comparisons
        for measure, difference, interval in (
            ("UAR", candidate.equivalence.delta_uar, candidate.equivalence.interval_uar),
            ("WAR", candidate.equivalence.delta_war, candidate.equivalence.interval_war),
        )
    ]
    drawable = len(result.class_names) <= _MAX_DRAWN_CLASSES
    matrices: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for answers in (result.truth, *result.comparisons):
        matrices.setdefault(answers.confusion, []).append(answers.name)
    quantiles = {
        candidate.name: {float(q): error for q, error in candidate.logit_errors.items() if math.isfinite(error)}
        for candidate in result.comparisons
    }
    erring = any(error > 0 for errors in quantiles.values() for error in errors.values())
    curves: dict[tuple[Any, ...], tuple[list[str], tuple[CalibrationBin, ...]]] = {}
    for answers in (result.truth, *result.comparisons):
        bins = answers.calibration_bins
        alike = tuple((round(b.confidence, 3), round(b.accuracy, 3), b.clips) for b in bins)
        curves.setdefault(alike, ([], bins))[0].append(answers.name)
    deltas = {
        candidate.name: [candidate.recall_deltas(result.truth)[name] for name in result.class_names]
        for candidate in result.comparisons
    }
    changed = any(any(values) for values in deltas.values())
    return {
        "differences": drawn(charts.difference_chart("differences", rows, result.comparisons[0].equivalence.margin)),
        "matrices": [
            {
                "names": " = ".join(names),
                "svg": drawn(
                    charts.confusion_chart(
                        f"confusion-{index}", " = ".join(names), np.array(matrix), result.class_names
                    )
                )
                if drawable
                else None,
                "confusions": [] if drawable else _largest_confusions(np.array(matrix), result.class_names),
            }
            for index, (matrix, names) in enumerate(matrices.items())
        ],
        "most_confusions": _MAX_CONFUSIONS,
        "recalls": drawn(charts.recall_chart("recalls", deltas, result.class_names)) if changed else None,
        "calibration": drawn(charts.calibration_chart("calibration", list(curves.values()))),
        "errors": drawn(charts.error_chart("errors", quantiles, result.limits.logits)) if erring else None,
        "load": None if bench is None else drawn(charts.load_chart("load", bench)),
        "machine": "" if bench is None else bench.machine,
    }


def _largest_confusions(confusion: Int64, class_names: Sequence[str]) -> list[dict[str, str]]:
    """Return the most frequent confusions, the largest first."""
    clips = confusion.sum(axis=1)
    wrong = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    places = [divmod(int(place), len(wrong)) for place in np.argsort(-wrong, axis=None, kind="stable")]
    return [
        {
            "label": class_names[row],
            "predicted": class_names[column],
            "clips": f"{wrong[row, column]:,}",
            "share": f"{wrong[row, column] / clips[row]:.0%}",
        }
        for row, column in places[:_MAX_CONFUSIONS]
        if wrong[row, column]
    ]


def _recalls(result: VerificationResult) -> dict[str, Any]:
    clips = [sum(row) for row in result.truth.confusion]
    rows = []
    for name, count in zip(result.class_names, clips, strict=True):
        before = result.truth.recalls.get(name)
        deltas = [candidate.recall_deltas(result.truth)[name] for candidate in result.comparisons]
        cells = ["–" if before is None else f"{before:.1f} %"]
        cells += ["–" if delta is None else "same" if delta == 0 else _points(delta) for delta in deltas]
        rows.append({"name": name, "clips": f"{count:,}", "cells": cells})
    absent = [name for name, count in zip(result.class_names, clips, strict=True) if not count]
    return {"classes": rows, "absent": absent}


def _blocks(result: VerificationResult) -> dict[str, Any]:
    """Return each block's own error as a bar relative to its tolerance, and the texts on bisection and ensembles."""
    found = result.localisation
    layers = () if found is None else found.layers
    suspect = found.suspect.block if found is not None and found.failing else None
    return {
        "blocks": [
            {
                "name": block.block,
                "precision": block.precision,
                "own": _error(block.own),
                "tolerance": _error(block.tolerance),
                "width": f"{_share(block.own, block.tolerance):.1f}",
                "logits": "" if block.logits is None else f"{block.logits:.2g}",
                "look": "good" if block.within else "bad",
                "note": "suspect" if block.block == suspect else "" if block.within else "fails",
            }
            for block in layers
        ],
        "where": "" if found is None else found.where or str(found),
        "effects": any(block.logits is not None for block in layers),
        "bisected": None if result.bisection is None else _bisected(result.bisection),
        "ensembles": [
            f"{name}: {f'at most {error:.2g}' if math.isfinite(error) else 'an answer is not finite or missing'}"
            for name, error in result.ensembles.items()
        ],
    }


def _bisected(found: Bisection) -> str:
    if found.keep_fp32 is None:
        return "With every block in fp32 the limits do not hold either, so precision is not the reason."
    if not found.keep_fp32:
        return "No block must stay fp32: exported in fp16, the limits hold."
    return f"{', '.join(found.keep_fp32)} must stay fp32 for the limits to hold, all others may be fp16."


def _share(own: float, tolerance: float) -> float:
    """Return the error in percent of the tolerance, at most 100."""
    if math.isinf(tolerance) or own == 0:
        return 0.0
    return 100.0 if own >= tolerance else 100 * own / tolerance


def _origin(result: VerificationResult, data: bytes, bench_data: bytes | None) -> dict[str, Any]:
    written = [("metrics", "verify.json", data)] + ([] if bench_data is None else [("load", "bench.json", bench_data)])
    embedded = base64.b64encode(data).decode() if len(data) <= _MAX_EMBEDDED_BYTES else ""
    return {
        "chain": [
            *(vars(link) for link in result.provenance.chain),
            *({"stage": s, "file": name, "sha256": hashlib.sha256(text).hexdigest()} for s, name, text in written),
        ],
        "data_link": f"data:application/json;base64,{embedded}" if embedded else "",
        "tools": ", ".join(f"{tool} {version}" for tool, version in result.provenance.tools.items()),
    }
