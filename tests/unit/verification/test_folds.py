import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_deploy.errors import DferDeployError
from dfer_deploy.verification.folds import FORMAT, ComparedAnswers, earlier_from_json, pooled
from dfer_deploy.verification.limits import LIMITS


def fold(first: int, **changes: Any) -> ComparedAnswers:
    values = {
        "class_names": ("a", "b"),
        "clips": tuple(f"clip {first + index}" for index in range(3)),
        "clip_hashes": tuple(f"{first + index:064x}" for index in range(3)),
        "groups": None,
        "labels": np.array([0, 1, 1]),
        "reference": np.array([0, 1, 0]),
        "candidates": {"onnxruntime fp32": np.array([0, 0, 0])},
    }
    return ComparedAnswers(**(values | changes))


def written(path: Path, answers: ComparedAnswers, outcome: dict[str, Any] | None = None, **changes: Any) -> Path:
    content = {"format": FORMAT, "passed": True, "exit_code": 0, "failures": []}
    content |= {"limits": vars(LIMITS["fp16"]) | {"roundings": 4}, "provenance": {"target": "embedded"}}
    content |= outcome or {}
    content |= {"class_names": list(answers.class_names), "answers": answers.to_dict() | changes}
    path.write_text(json.dumps(content))
    return path


def test_what_was_written_is_read_and_pooled(tmp_path: Path) -> None:
    read = earlier_from_json(written(tmp_path / "v.json", fold(3, labels=np.array([1, 1, 0]))))
    assert read.failure is None
    both = pooled([fold(0), read.answers], "onnxruntime fp32")
    assert both.clips == tuple(f"clip {index}" for index in range(6))
    assert both.clip_hashes == tuple(f"{index:064x}" for index in range(6))
    assert both.labels.tolist() == [0, 1, 1, 1, 1, 0]
    assert both.reference.tolist() == [0, 1, 0] * 2
    assert both.candidates["onnxruntime fp32"].tolist() == [0] * 6


def test_only_folds_that_were_held_alike_are_pooled(tmp_path: Path) -> None:
    limits = replace(LIMITS["fp16"], flips=0.01)
    earlier = earlier_from_json(written(tmp_path / "v.json", fold(0)))
    earlier.check_alike(LIMITS["fp16"], "embedded")
    for other, target, message in (
        (limits, "embedded", "accepted flips up to 1.0, this one up to 0.01; verify that fold again with the same"),
        (LIMITS["fp32"], "embedded", "is of the precision fp16, this one of fp32"),
        (LIMITS["fp16"], "tensorrt", "is of the target embedded, this one of tensorrt"),
    ):
        with pytest.raises(DferDeployError, match=message):
            earlier.check_alike(other, target)
    stricter = written(tmp_path / "v.json", fold(0), {"limits": vars(limits)})
    earlier_from_json(stricter).check_alike(LIMITS["fp16"], "embedded")
    for damage in ({"limits": {}}, {"limits": vars(limits) | {"flips": "all"}}, {"limits": 3}, {"provenance": None}):
        with pytest.raises(DferDeployError, match=r"v\.json is no result of"):
            earlier_from_json(written(tmp_path / "v.json", fold(0), damage))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (fold(2), "the clip 'clip 2' is in two of the pooled verifications"),
        (
            fold(3, clip_hashes=("a" * 64, f"{1:064x}", "b" * 64)),
            r"^the clip 'clip 4' has the frames of 'clip 1' in another pooled verification",
        ),
        (fold(3, class_names=("b", "a")), "has the classes b, a, this one a, b"),
        (fold(3, candidates={"triton grpc": np.zeros(3, np.int64)}), r"has no 'onnxruntime fp32' \(it has triton grpc"),
        (fold(3, groups=("x", "y", "z")), "has groups and another has none"),
    ],
)
def test_what_does_not_belong_together_is_not_pooled(other: ComparedAnswers, message: str) -> None:
    with pytest.raises(DferDeployError, match=message):
        pooled([fold(0), other], "onnxruntime fp32")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [0, 1, 2]},
        {"labels": [0, 1]},
        {"labels": [0, 1, -1]},
        {"reference": [0, 1, 0.5]},
        {"groups": ["x"]},
        {"clips": 3},
        {"clip_hashes": ["a" * 64]},
        {"clip_hashes": ["a" * 64, "b" * 64, "c"]},
        {"clip_hashes": None},
    ],
)
def test_damaged_answers_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DferDeployError, match="is no result of verify"):
        earlier_from_json(written(tmp_path / "v.json", fold(0), **changes))


def test_a_file_that_is_far_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer_deploy.verification.folds._MAX_FILE_BYTES", 1 << 20)
    path = written(tmp_path / "v.json", fold(0))
    path.write_text(path.read_text() + " " * (1 << 20))
    with pytest.raises(DferDeployError, match="it is larger than 1 MiB"):
        earlier_from_json(path)


def test_of_clips_with_the_same_frames_the_first_counts() -> None:
    same = tuple(f"{index:064x}" for index in (1, 0, 1))
    once = fold(0, clip_hashes=same, groups=("x", "y", "z")).once
    assert (once.clips, once.groups) == (("clip 0", "clip 1"), ("x", "y"))
    assert (once.labels.tolist(), once.reference.tolist()) == ([0, 1], [0, 1])


def test_a_file_that_does_not_tell_the_frames_of_its_clips_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "v.json", fold(0))
    content = json.loads(path.read_text())
    del content["answers"]["clip_hashes"]
    path.write_text(json.dumps(content))
    with pytest.raises(DferDeployError, match=r"v\.json does not tell the frames of its clips.*verify that fold again"):
        earlier_from_json(path)


@pytest.mark.parametrize(
    ("outcome", "first"),
    [
        ({"passed": False, "exit_code": 1, "failures": ["a logit differs", "WAR differs"]}, "a logit differs"),
        ({"failures": ["a logit differs"]}, "a logit differs"),
        ({"passed": False}, "it does not say why"),
        ({"exit_code": 1}, "it does not say why"),
    ],
)
def test_a_file_that_failed_is_named_with_its_first_failure(
    tmp_path: Path, outcome: dict[str, Any], first: str
) -> None:
    path = written(tmp_path / "v.json", fold(0), outcome)
    assert earlier_from_json(path).failure == f"the pooled verification {path} failed: {first}"


def test_a_file_that_is_undecided_did_not_fail(tmp_path: Path) -> None:
    assert earlier_from_json(written(tmp_path / "v.json", fold(0), {"exit_code": 3})).failure is None


@pytest.mark.parametrize("outcome", [{"failures": 3}, {"failures": None}])
def test_a_damaged_outcome_is_refused(tmp_path: Path, outcome: dict[str, Any]) -> None:
    with pytest.raises(DferDeployError, match="is no result of verify"):
        earlier_from_json(written(tmp_path / "v.json", fold(0), outcome))


def test_a_candidate_may_have_any_name(tmp_path: Path) -> None:
    named = dict.fromkeys(("", " "), np.zeros(3, np.int64))
    read = earlier_from_json(written(tmp_path / "v.json", fold(0, candidates=named))).answers
    assert read.labels.tolist() == [0, 1, 1]
    assert read.reference.tolist() == [0, 1, 0]
    assert list(read.candidates) == ["", " "]


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "v.json", fold(0))
    path.write_text(path.read_text().replace(FORMAT, "dfer-deploy-verify/9"))
    with pytest.raises(DferDeployError, match="its format is 'dfer-deploy-verify/9', expected 'dfer-deploy-verify/2'"):
        earlier_from_json(path)


def test_what_is_no_result_of_verify_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("[]")
    for name in ("bench.json", "none.json"):
        with pytest.raises(DferDeployError, match=f"{name} is no result of verify"):
            earlier_from_json(tmp_path / name)
