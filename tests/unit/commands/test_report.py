"""The command line makes a report of files, and refuses those that are none in one sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_deploy.metrics import calibration, score
from dfer_deploy.verification.limits import LIMITS
from dfer_deploy.verification.statistics import equivalence, rate

CLASSES = ("a", "b", "c")
LABELS = np.arange(30) % 3
ANSWERS: dict[str, Any] = {
    "uar": 100.0,
    "war": 100.0,
    "recalls": dict.fromkeys(CLASSES, 100.0),
    "confusion": score(LABELS, LABELS, CLASSES).confusion.tolist(),
    "calibration_error": 0.0,
    "calibration_bins": [vars(b) for b in calibration(LABELS, np.eye(3, dtype=np.float32)[LABELS]).bins],
}
EQUAL = equivalence(LABELS, LABELS, LABELS, 3)
VERIFICATION: dict[str, Any] = {
    "format": "dfer-deploy-verify/2",
    "failures": [],
    "undecided": [],
    "clips": 30,
    "class_names": list(CLASSES),
    "limits": vars(LIMITS["fp32"]) | {"roundings": 30.0},
    "truth": {"name": "PyTorch fp32", **ANSWERS},
    "comparisons": [
        {
            "name": "onnxruntime fp32",
            **ANSWERS,
            "max_logit_difference": 1e-5,
            "max_logit_difference_encoder": 1e-5,
            "max_logit_difference_head": 1e-6,
            "roundings": 1.5,
            "logit_errors": {"0.5": 1e-6, "1": 1e-5},
            "equivalence": vars(EQUAL)
            | {"interval_uar": vars(EQUAL.interval_uar), "interval_war": vars(EQUAL.interval_war)},
            "flip_rate": vars(rate(np.zeros(30, dtype=bool))),
            "flips": [],
            "failures": [],
            "undecided": [],
        }
    ],
    "unreadable": {},
    "left_out": {},
    "reading": None,
    "ensembles": {},
    "provenance": {
        "chain": [
            {"stage": "checkpoint", "file": "", "sha256": "ab" * 32},
            {"stage": "manifest", "file": "manifest.json", "sha256": "cd" * 32},
        ],
        "name": "dfer",
        "version": 1,
        "target": "embedded",
        "precision": "fp32",
        "tools": {},
        "synthetic": None,
    },
}
BLOCK = {"block": "encoder.0", "precision": "fp32", "own": 1e-6, "tolerance": 1e-5, "within": True, "logits": None}
LOCALISED = {"clips": 3, "where": "no block alone leaves its tolerance", "suspect": None, "layers": [BLOCK]}
BENCH: dict[str, Any] = {
    "machine": "a machine",
    "subject": {"manifest_sha256": "cd" * 32, "checkpoint_sha256": "ab" * 32, "precision": "fp32"},
    "requests": 100,
    "in_process": [{"name": "onnxruntime fp32", "throughput": [20.0], "latency_ms": [50.0]}],
    "served": [],
}
FIRST = ("comparisons", 0)
HUGE = "1" + "0" * 400


def altered(content: dict[str, Any], place: tuple[Any, ...], text: str) -> str:
    """JSON in which something is replaced by ``text``, which need not be JSON that Python would write."""
    changed = copy.deepcopy(content)
    where: Any = changed
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = "@@"
    return json.dumps(changed).replace('"@@"', text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"a": NaN}', "nan is no number"),
        ('{"a": -1e999}', "-1e999 is no number"),
        ("[1]", "holds no table"),
        ("{}", "is missing in Content"),
        ('{"format": 3}', "v.json: format is 3"),
    ],
)
def test_a_file_that_verify_did_not_write_is_refused(cli: Any, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.json").write_text(text)
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert message.lower() in result.output.replace("\n", " ").lower()
    assert not (tmp_path / "r.html").exists()


def test_what_verify_and_bench_wrote_is_shown(cli: Any, tmp_path: Path) -> None:
    """So that what is refused below is refused for what was altered."""
    (tmp_path / "v.json").write_text(json.dumps(VERIFICATION))
    (tmp_path / "b.json").write_text(json.dumps(BENCH))
    result = cli("report", tmp_path / "v.json", "--bench", tmp_path / "b.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.output


def test_a_page_does_not_replace_what_it_is_made_of(cli: Any, tmp_path: Path) -> None:
    for name, content in (("v.json", VERIFICATION), ("b.json", BENCH)):
        (tmp_path / name).write_text(json.dumps(content))
    for name in ("v.json", "b.json"):
        result = cli("report", tmp_path / "v.json", "--bench", tmp_path / "b.json", "-o", tmp_path / name)
        assert result.exit_code == 2
        assert "would replace the input" in result.output.replace("\n", " ")
    assert json.loads((tmp_path / "v.json").read_text()) == VERIFICATION
    assert json.loads((tmp_path / "b.json").read_text()) == BENCH


@pytest.mark.parametrize("value", ["1e999", "1e308", HUGE, "-5", '"1"', "true"])
@pytest.mark.parametrize(
    "place",
    [
        ("truth", "uar"),
        (*FIRST, "war"),
        ("truth", "calibration_error"),
        (*FIRST, "recalls", "a"),
        (*FIRST, "equivalence", "margin"),
        (*FIRST, "equivalence", "mcnemar_p"),
        (*FIRST, "equivalence", "interval_uar", "high"),
        (*FIRST, "flip_rate", "high"),
        (*FIRST, "flip_rate", "n"),
        (*FIRST, "max_logit_difference"),
        (*FIRST, "logit_errors", "0.5"),
        ("limits", "logits"),
        ("clips",),
    ],
)
def test_a_number_that_cannot_be_is_refused(cli: Any, tmp_path: Path, place: tuple[Any, ...], value: str) -> None:
    (tmp_path / "v.json").write_text(altered(VERIFICATION, place, value))
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "v.json" in result.output.replace("\n", "")


@pytest.mark.parametrize("value", ["1e308", "101", "-101", HUGE])
def test_a_difference_of_more_than_100_points_is_refused(cli: Any, tmp_path: Path, value: str) -> None:
    (tmp_path / "v.json").write_text(altered(VERIFICATION, (*FIRST, "equivalence", "delta_uar"), value))
    assert cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html").exit_code == 2


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("provenance", "chain"), [], "does not begin with the checkpoint"),
        (("provenance", "chain", 0, "stage"), "list", "does not begin with the checkpoint"),
        (("class_names", 0), "a\x01b", "empty or not printable"),
        (("class_names", 0), "", "empty or not printable"),
        (("truth", "name"), "\ud800", "empty or not printable"),
        ((*FIRST, "name"), "\x00\uffff", "empty or not printable"),
        (("failures",), ["\ud800"], "surrogates not allowed"),
        (("not shown",), "\ud800", "surrogates not allowed"),
        (("comparisons",), VERIFICATION["comparisons"] * 2, "expected distinct names"),
        ((*FIRST, "logit_errors"), {str(n / 1e4): 1.0 for n in range(17)}, "17 logit_errors"),
        ((*FIRST, "logit_errors"), {"nan": 1.0}, "no error of a logit"),
        (
            (*FIRST, "calibration_bins"),
            [{"confidence": 0.5, "accuracy": 0.5, "clips": n} for n in (-1, 31)],
            "not that",
        ),
        (("ensembles",), {"dfer_stream": "small"}, "the difference of 'dfer_stream' is 'small'"),
        (("localisation",), LOCALISED | {"layers": []}, "localisation has 0 layers"),
        (("localisation",), LOCALISED | {"layers": [BLOCK] * 401}, "localisation has 401 layers"),
        (("localisation",), LOCALISED | {"layers": [BLOCK | {"own": -1.0}]}, "own of the block 'encoder.0' is -1.0"),
        (("localisation",), LOCALISED | {"layers": [BLOCK | {"block": "\ud800"}]}, "empty or not printable"),
        (("localisation",), LOCALISED | {"where": "\ud800"}, "surrogates not allowed"),
        (("bisection",), {"keep_fp32": "encoder.0", "command": None}, "bisection.keep_fp32 is 'encoder.0'"),
        ((*FIRST, "equivalence", "interval_war"), {"low": 1.0, "high": -1.0, "method": "exact"}, "with the interval"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    cli: Any, tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    (tmp_path / "v.json").write_text(altered(VERIFICATION, place, json.dumps(value)))
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("machine",), '"\\ud800"'),
        (("in_process",), "[]"),
        (("in_process", 0, "name"), '"\\u0001"'),
        (("in_process", 0, "throughput"), "[]"),
        (("in_process", 0, "latency_ms"), "[]"),
        (("in_process", 0, "throughput", 0), "-1"),
        (("in_process", 0, "throughput", 0), "1e308"),
        (("in_process", 0, "latency_ms", 0), HUGE),
        (("served",), '[{"name": "served", "concurrency": 1, "rounds": []}]'),
        (("subject", "manifest_sha256"), '"ef"'),
        (("subject",), "null"),
        (("not shown",), '"\\ud800"'),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(cli: Any, tmp_path: Path, place: tuple[Any, ...], value: str) -> None:
    (tmp_path / "v.json").write_text(json.dumps(VERIFICATION))
    (tmp_path / "b.json").write_text(altered(BENCH, place, value))
    result = cli("report", tmp_path / "v.json", "--bench", tmp_path / "b.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "b.json" in result.output.replace("\n", "")


def test_a_missing_file_is_named(cli: Any, tmp_path: Path) -> None:
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "v.json cannot be read" in result.output.replace("\n", "")
