"""The gate, with the real command line, onnxruntime and Triton.

Twelve clips are too few to decide: what is right ends with UNDECIDED.
"""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from tiny import clips_of, save_reference, tiny_model, write_frames

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.files import sha256_of_file
from dfer_deploy.runtimes.torch_predictor import TorchPredictor


def changed_bundle(bundle: Bundle, folder: Path, graph: str, relative_change: float) -> Path:
    """A copy of a bundle whose weights of one graph were changed a little."""
    return planted.planted(bundle, folder, graph, functools.partial(planted.drift, relative=relative_change)).path


@pytest.mark.usefixtures("environment")
def test_what_was_exported_is_what_is_served(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    result = cli(
        "verify", bundle.path, "--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json"
    )
    assert result.exit_code == ExitCode.UNDECIDED, result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["passed"]
    assert report["clips"] == 12
    assert [c["name"] for c in report["comparisons"]] == ["onnxruntime fp32", "triton grpc", "triton http"]
    for comparison in report["comparisons"]:
        assert 0 < comparison["max_logit_difference"] < 1e-3
        assert comparison["flips"] == []
        assert comparison["war"] == report["truth"]["war"]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("graph", ["temporal_head", "image_encoder"])
def test_a_model_whose_weights_moved_by_one_percent_fails(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path, graph: str
) -> None:
    changed = changed_bundle(bundle, tmp_path / "changed", graph, 0.01)
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    result = cli("verify", changed, *arguments)
    assert result.exit_code == 1
    assert "not verified" in result.output
    failures = [c["failures"] for c in json.loads((tmp_path / "v.json").read_text())["comparisons"]]
    assert len(failures) == 3
    assert all(failures), "in process and served over both protocols, all must be caught"
    head_is_blamed = any("temporal head" in sentence for sentence in failures[0])
    assert head_is_blamed == (graph == "temporal_head")


def test_an_fp16_head_that_moved_by_one_percent_fails(
    cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    assert cli("export", own_checkpoint, "-o", tmp_path / "b", "--precision", "fp16").exit_code == 0
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--in-process")
    good = cli("verify", tmp_path / "b", *arguments)
    assert good.exit_code == ExitCode.UNDECIDED, good.output
    changed = changed_bundle(open_bundle(tmp_path / "b"), tmp_path / "changed", "temporal_head", 0.01)
    assert cli("verify", changed, *arguments).exit_code == 1


@pytest.mark.usefixtures("environment")
def test_a_server_whose_fp16_head_moved_fails_though_the_graphs_are_right(
    cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    """What counts is what is served: only the copy in the repository is changed, by one percent."""
    assert cli("export", own_checkpoint, "-o", tmp_path / "b", "--precision", "fp16").exit_code == 0
    right, moved = open_bundle(tmp_path / "b"), functools.partial(planted.drift, relative=0.01)
    changed = planted.planted_where_served(right, tmp_path / "changed", "dfer_temporal_head", moved)
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    assert cli("verify", changed.path, *arguments).exit_code == 1
    in_process, *served = json.loads((tmp_path / "v.json").read_text())["comparisons"]
    assert not in_process["failures"]
    assert any("a logit against onnxruntime in process" in failure for one in served for failure in one["failures"])


@pytest.mark.usefixtures("environment")
def test_probabilities_that_do_not_follow_from_the_logits_fail(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    """`predict` shows probabilities, so logits alone prove nothing."""
    changed = planted.planted(bundle, tmp_path / "changed", "temporal_head", planted.negate_probabilities)
    result = cli("verify", changed.path, "--checkpoint", own_checkpoint, "--data", clip_list)
    assert result.exit_code == 1
    assert result.output.count("a probability against the softmax of its logits differs") == 3


def test_uar_war_and_sure_flips_decide_where_logits_are_allowed_to_differ(
    cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other.pt", tiny_model(seed=5), {})
    labels = tmp_path / "list.txt"
    labels.write_text("".join(f"{clip_list.parent}/{index:03d} 16 2\n" for index in range(12)))
    arguments = ("--checkpoint", tmp_path / "other.pt", "--data", labels, "--in-process", "--max-logit-error", 1e6)
    result = cli("verify", bundle.path, *arguments, "--json", tmp_path / "v.json")
    assert result.exit_code == 1
    (comparison,) = json.loads((tmp_path / "v.json").read_text())["comparisons"]
    failures = " ".join(comparison["failures"])
    assert "a logit differs" not in failures
    assert "WAR differs by" in failures
    assert "PyTorch says" in failures


def test_another_checkpoint_fails_and_its_flips_are_named(
    cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other.pt", tiny_model(seed=5), {})
    result = cli(
        "verify", bundle.path, "--checkpoint", tmp_path / "other.pt", "--data", clip_list, "--in-process",
        "--json", tmp_path / "v.json",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "was exported from another checkpoint" in result.output
    (comparison,) = json.loads((tmp_path / "v.json").read_text())["comparisons"]
    names = {f"{index:03d}" for index in range(12)}
    assert comparison["flips"]
    assert {flip["clip"] for flip in comparison["flips"]} <= names
    chain = json.loads((tmp_path / "v.json").read_text())["provenance"]["chain"]
    assert chain[0]["sha256"] == bundle.manifest.checkpoint.sha256
    assert {"stage": "compared checkpoint", "file": "", "sha256": sha256_of_file(tmp_path / "other.pt")} in chain


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-logit-error", "inf"), ("--max-logit-error", "nan"), ("--margin", "inf"), ("--margin", "nan")],
)
def test_a_limit_that_is_no_number_is_refused_before_anything_is_asked(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path, option: str, value: str
) -> None:
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--in-process", "--json", tmp_path / "v.json")
    result = cli("verify", bundle.path, *arguments, option, value)
    assert result.exit_code == ExitCode.WRONG_INPUT
    assert value in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "option"), [(("--in-process",), "--in-process"), (("--runtime", "onnxruntime-cpu"), "--runtime")]
)
def test_a_server_that_was_not_asked_is_left_out_with_the_reason(
    cli: Any,
    bundle: Bundle,
    own_checkpoint: Path,
    clip_list: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    option: str,
) -> None:
    given = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    result = cli("verify", bundle.path, *given, *arguments)
    assert f"not verified: Triton, since {option} omits it" in result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["left_out"] == {"Triton": f"{option} omits it"}
    assert report["ensembles"] == {}


def test_results_do_not_replace_what_is_verified(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    checkpoint, policy = tmp_path / "a.pt", tmp_path / "policy.toml"
    shutil.copyfile(own_checkpoint, checkpoint)
    policy.write_text("")
    before = {path: path.read_bytes() for path in (checkpoint, policy, clip_list, bundle.path / "manifest.json")}
    arguments = ("verify", bundle.path, "--data", clip_list, "--in-process")
    of_checkpoint = (*arguments, "--checkpoint", checkpoint, "--policy", policy)
    for option in ("--json", "--report", "--save-baseline"):
        for path in before:
            result = cli(*of_checkpoint, option, path)
            assert result.exit_code == ExitCode.WRONG_INPUT
            assert re.search(r"would (replace the input|change the bundle)", result.output.replace("\n", " "))
    both = cli(*of_checkpoint, "--json", tmp_path / "x", "--report", tmp_path / "x")
    assert (both.exit_code, "both write" in both.output.replace("\n", " ")) == (ExitCode.WRONG_INPUT, True)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "policy.toml"]


def test_other_names_than_the_checkpoints_are_refused(
    cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path
) -> None:
    """The logits would be the same: only the names tell that two classes were swapped."""
    model = tiny_model()
    first, second, *rest = model.spec.prompts.class_names
    prompts = dataclasses.replace(model.spec.prompts, class_names=(second, first, *rest))
    model.spec = dataclasses.replace(model.spec, prompts=prompts)
    save_checkpoint(tmp_path / "swapped.pt", model, {})
    result = cli(
        "verify", bundle.path, "--checkpoint", tmp_path / "swapped.pt", "--data", clip_list, "--in-process",
    )  # fmt: skip
    assert result.exit_code == ExitCode.WRONG_INPUT
    assert f"names the classes {second}, {first}" in result.output


def test_a_failed_gate_keeps_its_results_when_no_block_is_found(
    cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: object) -> None:
        raise DferDeployError("no such block")

    monkeypatch.setattr("dfer_deploy.api.verify_bundle.localised", lost)
    save_checkpoint(tmp_path / "other.pt", tiny_model(seed=5), {})
    result = cli(
        "verify", bundle.path, "--checkpoint", tmp_path / "other.pt", "--data", clip_list, "--in-process",
        "--json", tmp_path / "v.json",
    )  # fmt: skip
    assert result.exit_code == ExitCode.GATE_FAILED
    assert json.loads((tmp_path / "v.json").read_text())["failures"]


@pytest.mark.usefixtures("environment")
def test_a_server_that_answers_no_stream_fails_and_keeps_the_results(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise DferDeployError("there is no such model")

    monkeypatch.setattr("dfer_deploy.api.verify_bundle.ensemble_answers", refused)
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--json", tmp_path / "v.json")
    assert cli("verify", bundle.path, *arguments).exit_code == ExitCode.GATE_FAILED
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["failures"] == ["streams or encoded images: there is no such model"]
    assert report["ensembles"] == {"dfer_stream": None, "dfer_encoded": None, "dfer_encoded_stream": None}


def test_a_saved_baseline_stands_for_pytorch(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    baseline = tmp_path / "baseline.npz"
    saved = cli(
        "verify", bundle.path, "--checkpoint", own_checkpoint, "--data", clip_list, "--in-process",
        "--save-baseline", baseline,
    )  # fmt: skip
    assert saved.exit_code == ExitCode.UNDECIDED
    arguments = ("--data", clip_list, "--in-process", "--json", tmp_path / "v.json")
    again = cli("verify", bundle.path, "--baseline", baseline, *arguments)
    assert again.exit_code == ExitCode.UNDECIDED, again.output
    chain = {
        link["stage"]: link["sha256"] for link in json.loads((tmp_path / "v.json").read_text())["provenance"]["chain"]
    }
    assert chain["compared checkpoint"] == chain["checkpoint"] == sha256_of_file(own_checkpoint)
    assert chain["baseline"] == sha256_of_file(baseline)
    changed = changed_bundle(bundle, tmp_path / "changed", "temporal_head", 0.01)
    assert cli("verify", changed, "--baseline", baseline, "--data", clip_list, "--in-process").exit_code == 1

    shutil.copytree(clip_list.parent, tmp_path / "clips")
    shutil.rmtree(tmp_path / "clips" / "004")
    write_frames(tmp_path / "clips" / "004", clips_of(1, seed=99)[0])
    other = cli(
        "verify", bundle.path, "--baseline", baseline, "--data", tmp_path / "clips" / "list.txt", "--in-process"
    )
    assert other.exit_code == 2
    assert "the clip '004' has other pixels here" in other.output
    baseline.write_bytes(baseline.read_bytes()[:200])
    damaged = cli("verify", bundle.path, "--baseline", baseline, "--data", clip_list, "--in-process")
    assert damaged.exit_code == 2
    assert "is no baseline" in damaged.output


def test_unreadable_clips_are_reported(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    shutil.copytree(clip_list.parent, tmp_path / "clips")
    shutil.rmtree(tmp_path / "clips" / "004")
    arguments = ("--checkpoint", own_checkpoint, "--data", tmp_path / "clips" / "list.txt", "--in-process")
    result = cli("verify", bundle.path, *arguments, "--json", tmp_path / "v.json")
    assert result.exit_code == 1
    assert "1 of 12 clips could not be read, at most 5% is accepted" in result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["clips"] == 11
    assert set(report["unreadable"]) == {"004"}
    assert "1 of 12 clips could not be read" in result.output


def test_the_reading_of_a_reference_file_is_held_against_its_best_acc(
    cli: Any, clip_list: Path, tmp_path: Path
) -> None:
    """The file's own accuracy tells what every comparison of a wrong reading with itself misses."""
    model = tiny_model(position="front")
    with TorchPredictor(model) as predictor:
        clips = np.stack([clip_from_path(clip_list.parent / f"{index:03d}", 32) for index in range(12)])
        answers = {
            p: predictor.classify(predictor.encode(clips), p).logits.argmax(axis=1) for p in ("front", "middle", "end")
        }
    # Labels on which the front position is right 9 times of 12, and the others are not.
    labels = answers["front"].copy()
    differing = np.flatnonzero(answers["front"] != answers["end"])
    wrong = [index for index in range(12) if index not in differing[:3]][:3]
    labels[wrong] = (labels[wrong] + 1) % 3
    war = {p: 100 * float(np.mean(answer == labels)) for p, answer in answers.items()}
    assert war["front"] == 75
    assert abs(war["end"] - 75) > 1, "the seed must tell the positions apart"
    own_list = tmp_path / "own_list.txt"
    own_list.write_text("".join(f"{clip_list.parent}/{i:03d} 16 {label}\n" for i, label in enumerate(labels)))
    path = save_reference(tmp_path / "a.pth", model, best_acc=75.0)
    outcomes = {}
    for position in ("front", "end"):
        folder = tmp_path / position
        assert cli("export", path, "-o", folder, "--prompt-position", position).exit_code == 0
        outcomes[position] = cli("verify", folder, "--checkpoint", path, "--data", own_list, "--in-process")
    assert outcomes["front"].exit_code == ExitCode.UNDECIDED, outcomes["front"].output
    assert "at the front: reproduced" in outcomes["front"].output
    assert outcomes["end"].exit_code == 1
    assert "front reproduces it: export with --prompt-position front" in outcomes["end"].output
    bypass = cli("verify", tmp_path / "end", "--checkpoint", path, "--data", own_list, "--in-process", "--other-list")
    assert bypass.exit_code == ExitCode.UNDECIDED


@pytest.mark.usefixtures("environment")
def test_the_reference_implementations_own_checkpoint_is_served(cli: Any, shared_data: Path, tmp_path: Path) -> None:
    checkpoint = shared_data / "a_dfew7_end_specific.pth"
    answers = np.load(shared_data / "a_dfew7_end_specific.npz")
    lines = []
    for index, (clip, label) in enumerate(zip(answers["frames"], answers["labels"], strict=True)):
        write_frames(tmp_path / "clips" / f"{index:02d}", clip.repeat(8, axis=1).repeat(8, axis=2))
        lines.append(f"clips/{index:02d} 16 {label}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    assert cli("export", checkpoint, "-o", tmp_path / "b").exit_code == 0
    result = cli("verify", tmp_path / "b", "--checkpoint", checkpoint, "--data", tmp_path / "list.txt")
    assert result.exit_code == ExitCode.UNDECIDED, result.output
    assert "at the end: reproduced" in result.output
    videos = [shared_data / "videos" / name for name in ("single_face.mp4", "WolfgangLanger_Pexels.mp4")]
    assert cli("predict", "--bundle", tmp_path / "b", *videos).exit_code == 0


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
    a, b = films(tmp_path / "a", 30, seed=1), films(tmp_path / "b", 30, seed=2)
    arguments = ("verify", bundle.path, "--checkpoint", own_checkpoint, "--in-process", "--batch-size", 16)
    first = cli(*arguments, "--data", a, "--json", tmp_path / "a.json")
    assert first.exit_code == ExitCode.UNDECIDED, first.output
    assert "onnxruntime fp32: too few clips to tell: n ≥ 598 needed for ±0.5 points" in first.output
    assert "0 of 360 (at most 0.829 %, about 3 / 360)" in first.output
    pooled = cli(*arguments, "--data", b, "--pool", tmp_path / "a.json", "--json", tmp_path / "b.json")
    assert pooled.exit_code == ExitCode.DONE, pooled.output
    content = json.loads((tmp_path / "b.json").read_text())
    (comparison,) = content["comparisons"]
    assert (comparison["equivalence"]["verdict"], comparison["equivalence"]["clips"]) == ("equivalent", 720)
    pool = {"stage": "pooled verification", "file": "a.json", "sha256": sha256_of_file(tmp_path / "a.json")}
    assert pool in content["provenance"]["chain"]
    assert len(set(content["answers"]["clip_hashes"])) == 360
    two_lists = cli(*arguments, "--data", a, "--data", b)
    assert two_lists.exit_code == ExitCode.DONE, two_lists.output
    twice = cli(*arguments, "--data", a, "--pool", tmp_path / "a.json")
    assert twice.exit_code == ExitCode.WRONG_INPUT
    assert "the clip 'film000/1-000' has the frames of 'film000/1-000'" in " ".join(twice.output.split())

    grouped = cli(*arguments, "--data", a, "--data", b, "--group-by", r"(film\d+)", "--json", tmp_path / "g.json")
    assert grouped.exit_code == ExitCode.UNDECIDED
    assert "on 720 clips from 30 sources" in grouped.output
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
    often.write_text(absolute.read_text() * 30)
    arguments = ("verify", bundle.path, "--checkpoint", own_checkpoint, "--in-process", "--json", tmp_path / "v.json")
    clips = len(clip_list.read_text().splitlines())
    for lists, listed in (([clip_list, absolute], 2 * clips), ([often], 30 * clips), ([clip_list], clips)):
        found = cli(*arguments, *(word for path in lists for word in ("--data", path)))
        assert found.exit_code == ExitCode.UNDECIDED
        content = json.loads((tmp_path / "v.json").read_text())
        assert (content["clips"], content["comparisons"][0]["equivalence"]["clips"]) == (listed, clips)
    pooled = cli(*arguments[:-2], "--data", absolute, "--pool", tmp_path / "v.json")
    assert pooled.exit_code == ExitCode.WRONG_INPUT
    assert "has the frames of '000' in another pooled verification" in " ".join(pooled.output.split())


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
    assert "the policy requires triton, but only onnxruntime-cpu would be compared" in " ".join(without.output.split())

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


@pytest.mark.usefixtures("environment")
def test_a_running_server_is_asked_over_the_protocols_that_are_named(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    arguments = ("verify", bundle.path, "--checkpoint", own_checkpoint, "--data", clip_list)
    with served_bundle(bundle) as endpoints:
        urls = ("--url", endpoints.http_url, "--url", endpoints.grpc_url)
        assert cli(*arguments, *urls, "--json", tmp_path / "v.json").exit_code == ExitCode.UNDECIDED
        report = json.loads((tmp_path / "v.json").read_text())
        assert [c["name"] for c in report["comparisons"]] == ["onnxruntime fp32", "triton http", "triton grpc"]
        assert set(report["ensembles"]) == {"dfer_stream", "dfer_encoded", "dfer_encoded_stream"}
        twice = cli(*arguments, "--url", endpoints.grpc_url, "--url", endpoints.grpc_url)
        assert twice.exit_code == ExitCode.WRONG_INPUT
        assert "is a second triton grpc" in twice.output
