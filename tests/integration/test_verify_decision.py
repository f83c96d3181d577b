"""How the clips decide on the command line: how many there are, what pooled lists add, and what a policy allows."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import clips_of, tiny_model, write_frames

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.errors import ExitCode
from dfer_deploy.files import sha256_of_file


def films(folder: Path, count: int, seed: int) -> Path:
    """A list of twelve clips of one frame from each of so many films."""
    lines = []
    for index, clip in enumerate(clips_of(12 * count, frames=1, seed=seed)):
        name = f"film{index // 12:03d}/{seed}-{index % 12:03d}"
        write_frames(folder / name, clip)
        lines.append(f"{name} 1 {index % 3}")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder / "list.txt"


def test_enough_clips_decide_and_pooled_folds_count_together(
    cli: Any, bundle: Bundle, own_checkpoint: Path, tmp_path: Path
) -> None:
    """Within ±5 points, for which a tenth of the clips is enough that the usual ±0.5 points need."""
    a, b = films(tmp_path / "a", 3, seed=1), films(tmp_path / "b", 3, seed=2)
    arguments = ("verify", bundle.path, "--checkpoint", own_checkpoint, "--in-process", "--margin", 5)
    first = cli(*arguments, "--data", a, "--json", tmp_path / "a.json")
    assert first.exit_code == ExitCode.UNDECIDED, first.output
    assert "onnxruntime fp32: too few clips to tell: n ≥ 59 needed for ±5 points" in first.output
    assert "0 of 36 (at most 7.98 %, about 3 / 36)" in first.output
    pooled = cli(*arguments, "--data", b, "--pool", tmp_path / "a.json", "--json", tmp_path / "b.json")
    assert pooled.exit_code == ExitCode.DONE, pooled.output
    content = json.loads((tmp_path / "b.json").read_text())
    (comparison,) = content["comparisons"]
    assert (comparison["equivalence"]["verdict"], comparison["equivalence"]["clips"]) == ("equivalent", 72)
    pool = {"stage": "pooled verification", "file": "a.json", "sha256": sha256_of_file(tmp_path / "a.json")}
    assert pool in content["provenance"]["chain"]
    assert len(set(content["answers"]["clip_hashes"])) == 36
    two_lists = cli(*arguments, "--data", a, "--data", b)
    assert two_lists.exit_code == ExitCode.DONE, two_lists.output
    twice = cli(*arguments, "--data", a, "--pool", tmp_path / "a.json")
    assert twice.exit_code == ExitCode.WRONG_INPUT
    assert "'film000/1-000'" in twice.output

    grouped = cli(*arguments, "--data", a, "--data", b, "--group-by", r"(film\d+)", "--json", tmp_path / "g.json")
    assert grouped.exit_code == ExitCode.UNDECIDED
    assert "on 72 clips from 3 sources" in grouped.output
    for pattern, message in (
        ("film", "has no group"),
        ("(", "is not a regular expression"),
        ("(x)", "finds no source"),
    ):
        refused = cli(*arguments, "--data", a, "--group-by", pattern)
        assert refused.exit_code == ExitCode.WRONG_INPUT
        assert message in refused.output
    again = cli(*arguments, "--data", a, "--data", a)
    assert again.exit_code == ExitCode.WRONG_INPUT
    assert "is in an earlier list too" in again.output


def test_a_model_no_better_than_chance_and_many_changes_are_told(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_deploy.commands.verification.MAX_FLIPS", 2)
    other = tmp_path / "other.pt"
    save_checkpoint(other, tiny_model(seed=5), {})
    arguments = ("verify", bundle.path, "--in-process", "--checkpoint", other, "--data-root", clip_list.parent)
    first = cli(*arguments, "--data", clip_list, "--json", tmp_path / "v.json")
    content = json.loads((tmp_path / "v.json").read_text())
    flips = len(content["comparisons"][0]["flips"])
    assert flips > 2
    assert f"… and {flips - 2} more; --json names all" in first.output
    lines = clip_list.read_text().splitlines()
    answers = content["answers"]["reference"]
    wrong = [(answer + 1 + clip % 2) % len(content["class_names"]) for clip, answer in enumerate(answers)]
    wrong_list = tmp_path / "wrong.txt"
    wrong_list.write_text(
        "".join(f"{line.rsplit(' ', 1)[0]} {label}\n" for line, label in zip(lines, wrong, strict=True))
    )
    assert "UAR of 0.00 %, no better than chance" in " ".join(cli(*arguments, "--data", wrong_list).output.split())


def test_the_same_clips_under_other_paths_prove_no_more(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    absolute, often = tmp_path / "absolute.txt", tmp_path / "often.txt"
    absolute.write_text("".join(f"{clip_list.parent}/{line}\n" for line in clip_list.read_text().splitlines()))
    often.write_text(absolute.read_text() * 6)
    # As many clips as the longest list names would decide within ±5 points.
    asked = ("verify", bundle.path, "--checkpoint", own_checkpoint, "--in-process", "--margin", 5)
    arguments = (*asked, "--json", tmp_path / "v.json")
    clips = len(clip_list.read_text().splitlines())
    for lists, listed in (([clip_list, absolute], 2 * clips), ([often], 6 * clips), ([clip_list], clips)):
        found = cli(*arguments, *(word for path in lists for word in ("--data", path)))
        assert found.exit_code == ExitCode.UNDECIDED
        content = json.loads((tmp_path / "v.json").read_text())
        assert (content["clips"], content["comparisons"][0]["equivalence"]["clips"]) == (listed, clips)
    pooled = cli(*asked, "--data", absolute, "--pool", tmp_path / "v.json")
    assert pooled.exit_code == ExitCode.WRONG_INPUT
    assert "'000'" in pooled.output


def test_a_pooled_verification_that_failed_fails_the_joint_one(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    other, fold = films(tmp_path / "a", 1, seed=1), tmp_path / "fold.json"
    arguments = ("verify", bundle.path, "--checkpoint", own_checkpoint, "--in-process")
    assert cli(*arguments, "--data", other, "--max-logit-error", 0, "--json", fold).exit_code == ExitCode.GATE_FAILED
    joint = cli(*arguments, "--data", clip_list, "--pool", fold, "--json", tmp_path / "v.json")
    assert joint.exit_code == ExitCode.GATE_FAILED
    content = json.loads((tmp_path / "v.json").read_text())
    (failure,) = content["failures"]
    assert failure == f"the pooled verification {fold} failed: {json.loads(fold.read_text())['failures'][0]}"
    assert not content["passed"]


def test_the_limits_of_a_policy_decide(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other.pt", tiny_model(seed=5), {})
    policy = tmp_path / "policy.toml"
    arguments = ("verify", bundle.path, "--data", clip_list, "--in-process", "--policy", policy)
    policy.write_text("[verify]\nmargin = 30\nmax_flip_rate = 0.3\n")
    wide = cli(*arguments, "--checkpoint", own_checkpoint, "--json", tmp_path / "v.json")
    assert wide.exit_code == ExitCode.DONE, wide.output
    content = json.loads((tmp_path / "v.json").read_text())
    assert content["format"] == "dfer-deploy-verify/2"
    assert (content["limits"]["points"], content["limits"]["flips"]) == (30, 0.3)
    policy.write_text("[verify]\nmargin = 30\nmax_flip_rate = 0.2\n")
    open_question = cli(*arguments, "--checkpoint", own_checkpoint)
    assert open_question.exit_code == ExitCode.UNDECIDED
    assert "answers changed, at most 20 % is accepted: too few clips to tell" in open_question.output
    both = cli(*arguments, "--checkpoint", own_checkpoint, "--margin", 0.5)
    assert both.exit_code == ExitCode.WRONG_INPUT
    assert f"--margin 0.5, but {policy} says 30; give one of them" in " ".join(both.output.split())
    policy.write_text('[verify]\nrequire = ["triton"]\n')
    without = cli(*arguments, "--checkpoint", own_checkpoint)
    assert without.exit_code == ExitCode.WRONG_INPUT
    assert "requires triton" in " ".join(without.output.split())

    policy.write_text(
        "[verify]\nmargin = 100\nmax_logit_error = 1e6\nmax_flip_rate = 0.05\nmax_recall_drop = 1\n"
        "max_calibration_rise = 0\n"
    )
    other = cli(*arguments, "--checkpoint", tmp_path / "other.pt", "--json", tmp_path / "v.json")
    assert other.exit_code == ExitCode.GATE_FAILED
    (comparison,) = json.loads((tmp_path / "v.json").read_text())["comparisons"]
    failures = " ".join(comparison["failures"])
    assert "a logit differs" not in failures
    assert f"{100 * comparison['flip_rate']['count'] / 12:.3g} % of the answers changed, at most 5 %" in failures
    deltas = comparison["recall_deltas"].values()
    assert sum("the recall of" in failure for failure in comparison["failures"]) == sum(d < -1 for d in deltas)
    assert len(comparison["logit_errors"]) == 4
