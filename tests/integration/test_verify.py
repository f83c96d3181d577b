"""The gate in process, with the real command line and onnxruntime.

Twelve clips are too few to decide: what is right ends with UNDECIDED.
"""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from tiny import clips_of, save_reference, tiny_model, write_frames

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.errors import DferDeployError, ExitCode
from dfer_deploy.files import sha256_of_file
from dfer_deploy.runtimes.torch_predictor import TorchPredictor


def test_an_fp16_head_that_moved_by_one_percent_fails(
    cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    assert cli("export", own_checkpoint, "-o", tmp_path / "b", "--precision", "fp16").exit_code == 0
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--in-process")
    good = cli("verify", tmp_path / "b", *arguments)
    assert good.exit_code == ExitCode.UNDECIDED, good.output
    changed = planted.drifted(open_bundle(tmp_path / "b"), tmp_path / "changed", "temporal_head", 0.01)
    assert cli("verify", changed, *arguments).exit_code == 1


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
    for pair in itertools.combinations(("--json", "--report", "--save-baseline"), 2):
        both = cli(*of_checkpoint, *(word for option in pair for word in (option, tmp_path / "x")))
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
    changed = planted.drifted(bundle, tmp_path / "changed", "temporal_head", 0.01)
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
    assert "is not a baseline" in damaged.output


def test_unreadable_clips_are_reported(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    shutil.copytree(clip_list.parent, tmp_path / "clips")
    shutil.rmtree(tmp_path / "clips" / "004")
    arguments = ("--checkpoint", own_checkpoint, "--data", tmp_path / "clips" / "list.txt", "--in-process")
    result = cli("verify", bundle.path, *arguments, "--json", tmp_path / "v.json")
    assert result.exit_code == 1
    assert "1 of 12" in result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["clips"] == 11
    assert set(report["unreadable"]) == {"004"}


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
