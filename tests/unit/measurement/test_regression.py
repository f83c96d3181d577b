"""The rule by which one run of bench is slower than another."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_deploy.errors import ResultError
from dfer_deploy.measurement.bench_result import BenchResult, InProcess, Served, Subject
from dfer_deploy.measurement.regression import check_comparable, compare, read_bench
from dfer_deploy.triton.perf_analyzer import LoadResult

Rounds = tuple[float, ...]
SUBJECT = Subject("aa" * 32, "bb" * 32, "fp32")


def result(first: Rounds = (10.0, 10.2, 9.9), served: Rounds | None = (9.0, 9.1, 8.9)) -> BenchResult:
    loads = tuple(LoadResult(1, value, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, None, None) for value in served or ())
    return BenchResult(
        "a machine", SUBJECT, 8, (InProcess("onnxruntime fp32", first, (100.0,)),),
        (Served("dfer served, 1 in flight", 1, loads),) if served else (),
    )  # fmt: skip


def zeroed() -> dict[str, Any]:
    """A run with a throughput of 0."""
    values = result().to_dict()
    values["in_process"][0]["throughput"][2] = 0.0
    return values


def scaled(rounds: Rounds, factor: float) -> Rounds:
    return tuple(value * factor for value in rounds)


def test_the_same_run_has_not_regressed() -> None:
    assert compare(result(), result()).regressed == ()
    assert compare(result(), result(scaled((10.0, 10.2, 9.9), 1.5))).regressed == ()


def test_a_slower_server_has_regressed_and_a_little_slower_one_has_not() -> None:
    served = (9.0, 9.1, 8.9)
    assert compare(result(), result(served=scaled(served, 0.7))).regressed == ("dfer served, 1 in flight",)
    # Both runs waver by 2.2 %, together 4.4 %.
    assert compare(result(), result(served=scaled(served, 0.97))).regressed == ()
    assert compare(result(), result(served=(8.9, 9.1, 8.0))).regressed == ()


@pytest.mark.parametrize(("factor", "fallen"), [(0.961, False), (0.959, True), (0.93, True)])
def test_what_counts_is_the_noise_of_both_runs_and_no_more(factor: float, fallen: bool) -> None:
    """Both runs waver by 2 % of their median, together 4 %."""
    rounds = (9.9, 10.0, 10.1)
    (found,) = compare(result(rounds, None), result(scaled(rounds, factor), None)).contestants
    assert found.throughput.noise == pytest.approx(0.04)
    assert found.has_regressed == fallen


def test_a_slower_graph_or_machine_is_told_once() -> None:
    slower = result(scaled((10.0, 10.2, 9.9), 0.7), scaled((9.0, 9.1, 8.9), 0.7))
    found = compare(result(), slower)
    assert found.regressed == ("onnxruntime fp32",)
    assert found.contestants[1].throughput.has_fallen
    assert str(found.contestants[0].throughput) == "-30.0% (noise 6.0%)"


def test_a_faster_first_contestant_does_not_make_the_others_slower() -> None:
    assert compare(result(), result(scaled((10.0, 10.2, 9.9), 2.0))).regressed == ()


def test_what_was_not_measured_again_is_undecided_and_what_is_new_is_named() -> None:
    found = compare(result(), result(served=None))
    assert (found.missing, found.added) == (("dfer served, 1 in flight",), ())
    assert found.undecided[0].startswith("dfer served, 1 in flight of the older run was not measured; measure with")
    found = compare(result(served=None), result())
    assert (found.missing, found.added, found.undecided) == ((), ("dfer served, 1 in flight",), ())
    other = dataclasses.replace(result(), in_process=(InProcess("PyTorch fp32 cpu", (1.0, 1.0, 1.0), (1.0,)),))
    with pytest.raises(ResultError, match="did not measure 'onnxruntime fp32'"):
        compare(other, result())


def test_what_is_too_noisy_is_no_proof() -> None:
    """Of 10 ± 10 % in both runs nothing is told; a fall beyond that noise is one all the same."""
    noisy = (9.0, 10.0, 11.0)
    found = compare(result(noisy, None), result(noisy, None))
    assert (found.regressed, len(found.undecided)) == ((), 1)
    assert (
        "onnxruntime fp32: too noisy to tell whether it is slower, throughput +0.0% (noise 40.0%)" in found.undecided[0]
    )
    assert compare(result(noisy, None), result(scaled(noisy, 0.5), None)).regressed == ("onnxruntime fp32",)
    # The whole machine wavers: the ratio of the server to the first contestant does not, and it holds.
    found = compare(result(noisy, scaled(noisy, 0.9)), result(noisy, scaled(noisy, 0.9)))
    assert [change.is_undecided for change in found.contestants] == [True, False]


def test_two_noises_together_hide_no_more_than_one() -> None:
    """The first contestant loses 19 % and the ratio to it 19 %, each just within its noise: together 34 %."""
    first, ratios = ((10.5, 10.0, 9.5), (8.5, 8.1, 7.7)), ((1.05, 1.0, 0.95), (0.85, 0.81, 0.77))
    old, new = (
        result(of_first, tuple(a * b for a, b in zip(of_first, of_ratio, strict=True)))
        for of_first, of_ratio in zip(first, ratios, strict=True)
    )
    found = compare(old, new)
    assert found.regressed == ()
    (sentence,) = found.undecided
    assert sentence.startswith("dfer served, 1 in flight: too noisy to tell whether it is slower, throughput -34.4%")


def test_a_noisy_first_contestant_is_told_as_the_reason() -> None:
    noisy = (8.0, 10.0, 12.0)
    found = compare(result(noisy, (9.0, 9.0, 9.0)), result(noisy, (7.0, 7.0, 7.0)))
    assert found.contestants[1].throughput.has_fallen
    assert "throughput -22.2% (noise 0.0%), ratio to onnxruntime fp32 -22.2% (noise 83.3%)" in found.undecided[1]


def test_another_bundle_checkpoint_or_precision_is_told() -> None:
    assert compare(result(), result()).subject_changes == ()
    other = dataclasses.replace(result(), subject=Subject("cc" * 32, "bb" * 32, "fp32"))
    assert compare(result(), other).subject_changes == ("another bundle (manifest cccccccccccc…, was aaaaaaaaaaaa…)",)
    other = dataclasses.replace(result(), subject=Subject("aa" * 32, "dd" * 32, "fp16"))
    assert compare(result(), other).subject_changes == (
        "another checkpoint (dddddddddddd…, was bbbbbbbbbbbb…)",
        "another precision (fp16, was fp32)",
    )


def test_other_machines_and_few_rounds_are_refused() -> None:
    with pytest.raises(ResultError, match="measured on 'a machine', this machine is 'another'"):
        check_comparable(result(), machine="another", rounds=3)
    with pytest.raises(ResultError, match="this run has 2 round"):
        check_comparable(result(), machine="a machine", rounds=2)
    with pytest.raises(ResultError, match="the older run has 2 round"):
        check_comparable(result((1.0, 1.0), (1.0, 1.0)), machine="a machine", rounds=3)


@pytest.mark.parametrize(("rounds", "most"), [(3, 0.015), (5, 0.001)])
def test_nothing_changed_is_rarely_a_regression(rounds: int, most: float) -> None:
    rng = np.random.default_rng(0)
    runs = [result(tuple(rng.normal(10, 0.5, rounds)), None) for _ in range(6000)]
    false_alarms = sum(bool(compare(old, new).regressed) for old, new in zip(runs[::2], runs[1::2], strict=True))
    assert false_alarms <= most * 3000


def test_a_written_result_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(result().to_dict() | {"of a later version": 1}))
    assert read_bench(path) == result()
    older = result().to_dict()
    del older["subject"]
    path.write_text(json.dumps(older))
    with pytest.raises(ResultError, match=r"not a result of this version's bench \(subject is missing .*measure it"):
        read_bench(path)


def test_a_result_of_the_release_before_is_read() -> None:
    """The file was written by ``bench --json`` of 0.1.0, which gave no format number."""
    released = Path(__file__).resolve().parents[2] / "released" / "bench-0.1.0.json"
    assert "format" not in json.loads(released.read_text(encoding="utf-8"))
    found = read_bench(released)
    assert [len(rounds) for rounds in found.throughputs.values()] == [3] * len(found.throughputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"machine": NaN}', "NaN is not a number"),
        ("[]", "instead of a table"),
        ("{}", "machine is missing"),
        ("[" * 100_000, "is not valid JSON"),
        (json.dumps(result().to_dict() | {"machine": 1}), "machine is 1, expected str"),
        (json.dumps(result().to_dict() | {"in_process": [], "served": []}), "0 contestants"),
        (json.dumps(zeroed()), "is not positive"),
        (json.dumps(result((1.0, 1.0, 5.5)).to_dict()).replace("5.5", "1e999"), "is not a number"),
        (json.dumps(result().to_dict() | {"served": result((1.0,), (1.0,)).to_dict()["served"]}), "different numbers"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        read_bench(path)


def test_a_missing_or_huge_file_is_a_sentence(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(ResultError, match="over 268435456 bytes"):
        read_bench(huge)
    with pytest.raises(ResultError, match="cannot be read"):
        read_bench(tmp_path / "old.json")
