import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_pages import planted_result

from dfer_deploy.errors import ResultError, SettingError
from dfer_deploy.files import write_json
from dfer_deploy.verification.folds import EarlierVerification, earlier_from_json
from dfer_deploy.verification.limits import LIMITS


def test_what_was_written_is_read(tmp_path: Path) -> None:
    result = planted_result(12)
    write_json(tmp_path / "v.json", result.to_dict())
    earlier = earlier_from_json(tmp_path / "v.json")
    assert earlier.failure is None
    assert earlier.result.answers.clips == result.answers.clips
    assert earlier.result.answers.reference.tolist() == result.answers.reference.tolist()


def test_only_folds_that_were_held_alike_are_pooled() -> None:
    limits = LIMITS["fp32"]
    stricter = replace(limits, flips=0.01)
    earlier = EarlierVerification(Path("v.json"), planted_result(12))
    earlier.check_alike(limits, "embedded")
    for other, target, message in (
        (stricter, "embedded", "accepted flips up to 1.0, this one up to 0.01; verify that fold again with the same"),
        (replace(limits, roundings=4.0), "embedded", "accepted roundings up to 30.0, this one up to 4.0"),
        (LIMITS["fp16"], "embedded", "is of the precision fp32, this one of fp16"),
        (limits, "tensorrt", "is of the target embedded, this one of tensorrt"),
    ):
        with pytest.raises(SettingError, match=message):
            earlier.check_alike(other, target)
    EarlierVerification(Path("v.json"), replace(earlier.result, limits=stricter)).check_alike(limits, "embedded")


def test_a_file_that_failed_is_named_with_its_first_failure(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_json(path, planted_result(12, (1, 1), failures=["a logit differs", "WAR differs"]).to_dict())
    failure = earlier_from_json(path).failure
    assert failure == f"the pooled verification {path} failed: candidate 0: a logit differs"


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"format": "dfer-deploy-verify/9"}'])
def test_what_is_not_a_result_of_verify_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ResultError, match=r"v\.json"):
        earlier_from_json(tmp_path / "v.json")
    with pytest.raises(ResultError, match=r"none\.json"):
        earlier_from_json(tmp_path / "none.json")


def test_a_file_that_does_not_have_the_hashes_of_its_clips_is_refused(tmp_path: Path) -> None:
    content = planted_result(12).to_dict()
    del content["answers"]["clip_hashes"]
    (tmp_path / "v.json").write_text(json.dumps(content))
    with pytest.raises(ResultError, match=r"answers\.clip_hashes is missing.*verify that fold again"):
        earlier_from_json(tmp_path / "v.json")
