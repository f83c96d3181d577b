"""A result becomes JSON and is read back whole; what ``verify`` did not write is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_pages import planted, planted_result, result_of

from dfer_deploy.errors import ExitCode, ResultError
from dfer_deploy.files import json_text
from dfer_deploy.measurement.bench_result import BenchResult
from dfer_deploy.verification.blocks import Bisection, BlockComparison, BlockError, Trial
from dfer_deploy.verification.prompt_position import ReadingCheck
from dfer_deploy.verification.verification_result import VerificationResult

RELEASED = Path(__file__).resolve().parents[2] / "released"
FIRST = ("comparisons", 0)
BLOCKS = BlockComparison((BlockError("encoder.0", "fp16", math.inf, 0.1, 0.2, -1.0, None),), 3, "somewhere")


def altered(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A result's JSON in which something was replaced."""
    content = copy.deepcopy(CONTENT)
    where: Any = content
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = value
    return content


CONTENT = planted(30, names=("a", "b", "c"))


def whole() -> VerificationResult:
    return dataclasses.replace(
        planted_result(30, (2, 0), failures=["a logit differs"]),
        reading=ReadingCheck(61.5, 61.5, "end", ("end", "front")),
        localisation=BLOCKS,
        bisection=Bisection(("encoder.0",), BLOCKS, (Trial((), ("it fails",)),), "dfer-deploy export"),
        ensembles={"dfer_stream": 1e-6, "dfer_encoded": math.inf},
        urls=("grpc://localhost:8001",),
    )


def test_everything_comes_back() -> None:
    result = whole()
    written = json_text(result.to_dict())
    read = VerificationResult.from_dict(json.loads(written))
    assert json_text(read.to_dict()) == written
    assert read == result
    assert read != planted_result(30)
    assert read.ensembles == result.ensembles
    assert read.localisation == BLOCKS
    assert read.bisection == result.bisection
    assert read.comparisons == result.comparisons
    assert read.answers.candidates["candidate 0"].tolist() == result.answers.candidates["candidate 0"].tolist()
    assert (read.limits, read.rounding, read.provenance) == (result.limits, result.rounding, result.provenance)


def test_what_a_later_version_adds_is_ignored() -> None:
    content = planted(30) | {"carbon_g": 3}
    content["limits"]["carbon_g"] = 1.0
    assert VerificationResult.from_dict(content).clips == 30


def test_a_result_of_the_release_before_is_read() -> None:
    """The file was written by ``verify --json`` of 0.1.0."""
    content = json.loads((RELEASED / "verify-0.1.0.json").read_text(encoding="utf-8"))
    result = VerificationResult.from_dict(content)
    assert (result.clips, result.exit_code) == (6, ExitCode.UNDECIDED)
    assert {key: value for key, value in result.to_dict().items() if key in content} == content


@pytest.mark.parametrize(
    ("failures", "undecided", "code"),
    [((), (), ExitCode.DONE), (("x",), ("y",), ExitCode.GATE_FAILED), ((), ("y",), ExitCode.UNDECIDED)],
)
def test_what_failed_counts_before_what_is_open(failures: Any, undecided: Any, code: ExitCode) -> None:
    result = dataclasses.replace(planted_result(30), failures=failures, undecided=undecided)
    assert result.exit_code == code
    assert result.to_dict()["exit_code"] == code


@pytest.mark.parametrize("what", ["clips", "passed", "exit_code"])
def test_a_file_that_contradicts_itself_is_refused(what: str) -> None:
    with pytest.raises(ResultError, match=f"^{what} is .*, which contradicts the rest"):
        VerificationResult.from_dict(planted(30, failures=["a logit differs"]) | {what: 7})


@pytest.mark.parametrize("value", [1e308, 10**400, -5, "1", True, math.nan])
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
def test_a_number_that_cannot_be_is_refused(place: tuple[Any, ...], value: Any) -> None:
    if place[-1] in ("max_logit_difference", "0.5", "logits") and value == 1e308:
        value = 1e40
    with pytest.raises(ResultError):
        result_of(altered(place, value))


@pytest.mark.parametrize("value", [1e308, 101, -101])
def test_a_difference_of_more_than_100_points_is_refused(value: float) -> None:
    with pytest.raises(ResultError, match="which cannot be"):
        result_of(altered((*FIRST, "equivalence", "delta_uar"), value))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), "dfer-deploy-verify/9", "expected 'dfer-deploy-verify/2'"),
        (("comparisons",), [], "there are 0 comparisons"),
        (("class_names",), "no list", "class_names is 'no list'"),
        (("limits",), {}, "limits.precision is missing"),
        (("provenance",), None, "provenance is None"),
        (("truth", "calibration_bins"), [], "is not that of 30 clips"),
        (("provenance", "chain"), [], "does not begin with the checkpoint"),
        (("provenance", "chain", 0, "stage"), "list", "does not begin with the checkpoint"),
        (("class_names", 0), "a\x01b", "empty or not printable"),
        (("truth", "name"), "\ud800", "empty or not printable"),
        ((*FIRST, "name"), "\x00\uffff", "empty or not printable"),
        (("comparisons",), CONTENT["comparisons"] * 2, "expected distinct names"),
        ((*FIRST, "name"), "another", "the answers are not those of another"),
        ((*FIRST, "confusion"), [[30]], "3 × 3 counts of 30 clips"),
        ((*FIRST, "logit_errors"), {str(n / 1e4): 1.0 for n in range(17)}, "17 logit_errors"),
        ((*FIRST, "logit_errors"), {"nan": 1.0}, "is not from 0 to 1"),
        (
            (*FIRST, "calibration_bins"),
            [{"confidence": 0.5, "accuracy": 0.5, "clips": n} for n in (-1, 31)],
            "is not that of 30 clips",
        ),
        (("ensembles",), {"dfer_stream": "small"}, "ensembles.dfer_stream is 'small'"),
        (("ensembles",), {"dfer_stream": -1.0}, "the difference of 'dfer_stream' is -1.0"),
        (("localisation",), {"clips": 3, "layers": []}, "localisation has 0 layers"),
        (("bisection",), {"keep_fp32": "encoder.0"}, "bisection.keep_fp32 is 'encoder.0'"),
        ((*FIRST, "equivalence", "interval_war"), {"low": 1.0, "high": -1.0, "method": "exact"}, "with the interval"),
        (("answers",), None, "answers is None"),
        (("answers", "labels"), [0] * 29, "the answers of 'labels' are not 30 indices of 3 classes"),
        (("answers", "labels"), [0] * 29 + [3], "the answers of 'labels'"),
        (("answers", "labels"), [0] * 29 + [-1], "the answers of 'labels'"),
        (("answers", "reference"), [0.5] * 30, "expected a list of integers"),
        (("answers", "reference"), [2**70] * 30, "more than 64 bits"),
        (("answers", "groups"), ["x"], "has 1 sources"),
        (("answers", "clips"), 3, "answers.clips is 3"),
        (("answers", "clip_hashes"), ["a" * 64] * 29 + ["c"], "has 29 SHA-256"),
        (("answers", "candidates"), {}, "the answers are not those of candidate 0"),
        (("answers", "candidates", "candidate 0"), [0] * 30, "contradicts its answers"),
        ((*FIRST, "failures"), ["a logit differs"], "is not among those of the whole"),
        ((*FIRST, "equivalence", "lost"), -1, "is negative"),
    ],
)
def test_what_verify_did_not_write_is_refused(place: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ResultError) as refused:
        result_of(altered(place, value))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own": -1.0}, "own of the block 'encoder.0' is -1.0"),
        ({"block": "\ud800"}, "empty or not printable"),
        ({"precision": "int4"}, "expected one of fp32, fp16"),
    ],
)
def test_a_block_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    content = whole().to_dict()
    content["localisation"]["layers"][0] |= change
    with pytest.raises(ResultError) as refused:
        VerificationResult.from_dict(content)
    assert message in str(refused.value)


@pytest.mark.parametrize("values", [None, [], 3, "x", True])
def test_what_is_not_a_table_is_refused(values: Any) -> None:
    for result in (VerificationResult, BenchResult):
        with pytest.raises(ResultError, match="expected a table"):
            result.from_dict(values)


def test_a_message_does_not_repeat_megabytes() -> None:
    with pytest.raises(ResultError) as refused:
        result_of(altered(("class_names",), "x" * 10**6))
    assert len(str(refused.value)) < 1000


def test_an_honest_result_is_kept_whatever_its_numbers() -> None:
    """Bounds are for files; a gate that fails by more than any bound fails, and does not lose its result."""
    result = planted_result(30)
    far = dataclasses.replace(result.comparisons[0], roundings=1e40, failures=("far",))
    kept = dataclasses.replace(result, comparisons=(far,), failures=("far",))
    assert kept.exit_code == ExitCode.GATE_FAILED
    many = tuple(f"class {index}" for index in range(300))
    assert planted_result(600, names=many).clips == 600
