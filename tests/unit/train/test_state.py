"""A run that is killed at any moment ends as if nothing had happened, and nothing that was written is lost."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import tiny_recipe, train_until_killed, train_with_full_disk, weights_of

from dfer_deploy.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.errors import CheckpointError, TrainingError
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.train.evaluation import evaluate
from dfer_deploy.train.initialisation import model_spec
from dfer_deploy.train.layouts import test_annotations as annotations_of_tests
from dfer_deploy.train.layouts import training_annotations
from dfer_deploy.train.loop import train
from dfer_deploy.train.recipe import Recipe
from dfer_deploy.train.result import TrainingResult
from dfer_deploy.train.state import run_identity
from dfer_deploy.train.trainer import Trainer


@pytest.fixture
def short(recipe: Recipe) -> Recipe:
    return shortened(recipe)


def shortened(recipe: Recipe) -> Recipe:
    """Three epochs of four steps, with a state after every step, and everything on that has a state of its own."""
    optim = replace(recipe.optim, epochs=3, short_epochs=1, ema_decay=0.7, accumulate=2)
    return replace(recipe, optim=optim, run=replace(recipe.run, select="test", save_every_s=0.0))


def killed(processes: ForkServerContext, recipe: Recipe, output: Path, where: str, count: int) -> None:
    process = processes.Process(target=train_until_killed, args=(recipe, output, where, count))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def same(first: TrainingResult, second: TrainingResult) -> None:
    assert (first.history, first.epoch) == (second.history, second.epoch)
    assert first.score.confusion.tolist() == second.score.confusion.tolist()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (weights_of(result.checkpoint.with_name(name)) for result in (first, second))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        provenances = [load_checkpoint(result.checkpoint.with_name(name)).provenance for result in (first, second)]
        assert provenances[0] == provenances[1]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    short: Recipe, processes: ForkServerContext, tmp_path: Path
) -> None:
    whole, output = train(short, tmp_path / "whole"), tmp_path / "killed"
    # In the first step; within epochs; while a state is written (a save of step 3, of the fourth step's epoch end);
    # between an epoch's checkpoints and its state; between the last checkpoint and the result.
    kills = [
        ("step", 1),
        ("step", 3),
        ("state", 2),
        ("step", 2),
        ("moved", 2),
        ("state", 4),
        ("step", 4),
        ("finish", 1),
    ]
    for where, count in kills:
        killed(processes, short, output, where, count)
        assert not (output / "result.json").exists()
    same(train(short, output), whole)
    assert sorted(file.name for file in output.iterdir()) == sorted(
        file.name for file in (tmp_path / "whole").iterdir()
    ), "half-written files of a killed process are left"


def test_without_a_step_s_state_a_run_continues_from_the_epoch_s(
    short: Recipe, processes: ForkServerContext, tmp_path: Path
) -> None:
    rarely = replace(short, run=replace(short.run, save_every_s=3600.0))
    killed(processes, rarely, tmp_path / "killed", "step", 7)
    same(train(rarely, tmp_path / "killed"), train(rarely, tmp_path / "whole"))


def test_what_changes_no_weight_is_no_part_of_a_run_s_identity(short: Recipe, root: Path, tmp_path: Path) -> None:
    spec, clips = model_spec(short.model), training_annotations(short)
    moved = replace(
        short,
        run=replace(short.run, save_every_s=9.0, tensorboard=True, device="auto"),
        data=replace(short.data, root=str(tmp_path), data_root="there", cache=False),
    )
    shutil.copy(root / "dataset.json", tmp_path)
    assert run_identity(short, spec, clips) == run_identity(moved, spec, clips)
    seeded = replace(short, run=replace(short.run, seed=1))
    assert run_identity(short, spec, clips) != run_identity(seeded, spec, clips)
    assert run_identity(short, spec, clips) != run_identity(short, spec, clips[1:])
    longer = [replace(clips[0], listed_frames=clips[0].listed_frames + 1), *clips[1:]]
    assert run_identity(short, spec, clips) != run_identity(short, spec, longer)


def test_another_data_set_or_weight_file_of_the_same_name_is_refused(short: Recipe, root: Path, tmp_path: Path) -> None:
    for name in ("train.txt", "test.txt", "dataset.json"):
        shutil.copy(root / name, tmp_path)
    weights = tmp_path / "weights.pt"
    save_checkpoint(weights, DferClip(model_spec(short.model)), {})
    model = replace(short.model, fast_start=False, pretrained=str(weights))
    optim, run = replace(short.optim, epochs=1), replace(short.run, select="last")
    data = replace(short.data, root=str(tmp_path), data_root=str(root))
    recipe = replace(short, model=model, data=data, optim=optim, run=run)
    first = train(recipe, tmp_path / "run")
    assert train(recipe, tmp_path / "run").to_dict() == first.to_dict()
    described = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(described.replace("{", "{ ", 1))
    with pytest.raises(TrainingError, match=r"dataset\.json has another content now"):
        train(recipe, tmp_path / "run")
    (tmp_path / "dataset.json").write_text(described)
    save_checkpoint(weights, DferClip(model_spec(short.model)), {"epoch": 2})
    with pytest.raises(TrainingError, match=r"the file model\.pretrained has another content now"):
        train(recipe, tmp_path / "run")


def test_a_best_checkpoint_that_the_state_does_not_know_is_scored_again(
    short: Recipe, processes: ForkServerContext, tmp_path: Path
) -> None:
    killed(processes, short, tmp_path, "finish", 1)
    other = DferClip(model_spec(short.model))
    save_checkpoint(tmp_path / "best.pt", other, {"epoch": 99})
    result = train(short, tmp_path)
    assert result.epoch == 99
    expected = evaluate(other, LabelledClips(annotations_of_tests(short), 32)).score(short.model.prompts.class_names)
    assert result.score.confusion.tolist() == expected.confusion.tolist()
    assert load_checkpoint(tmp_path / "best.pt").provenance["test_war"] == expected.war


@pytest.mark.slow
def test_a_full_disk_loses_nothing(short: Recipe, processes: ForkServerContext, tmp_path: Path) -> None:
    output, message = tmp_path / "run", tmp_path / "message.txt"
    killed(processes, short, output, "step", 6)
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    process = processes.Process(target=train_with_full_disk, args=(short, output, message))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert "cannot write" in message.read_text()
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    same(train(short, output), train(short, tmp_path / "whole"))


def test_the_state_holds_no_code(short: Recipe, processes: ForkServerContext, tmp_path: Path) -> None:
    killed(processes, short, tmp_path, "step", 3)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "state.pt") == []
    torch.load(tmp_path / "state.pt", weights_only=True)


def test_another_run_s_state_is_refused(short: Recipe, processes: ForkServerContext, tmp_path: Path) -> None:
    killed(processes, short, tmp_path, "step", 3)
    other = replace(short, optim=replace(short.optim, lr_temporal=0.5))
    with pytest.raises(TrainingError, match=r"optim.lr_temporal: 0.001 there, 0.5 here.*--fresh"):
        train(other, tmp_path)
    assert train(other, tmp_path, fresh=True).epoch >= 1
    with pytest.raises(TrainingError, match=r"result.json is of another run .*--fresh"):
        train(short, tmp_path)


def test_a_list_that_has_changed_is_refused(
    short: Recipe, root: Path, processes: ForkServerContext, tmp_path: Path
) -> None:
    lines = (root / "train.txt").read_text().splitlines()
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text("\n".join(lines if name == "train.txt" else lines[:7]) + "\n")
    data = replace(short.data, root=str(tmp_path), data_root=str(root))
    short = replace(short, data=data)
    killed(processes, short, tmp_path / "run", "step", 3)
    (tmp_path / "train.txt").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(TrainingError, match="the lists name other clips, frame counts or labels now"):
        train(short, tmp_path / "run")


def test_a_damaged_state_is_named(short: Recipe, tmp_path: Path) -> None:
    for content, message in ((b"not a state", "not a torch checkpoint"), (b"PK\3\4", "truncated")):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            train(short, tmp_path)
    torch.save({"format": "something else"}, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="not a training state of this version; begin anew with --fresh"):
        train(short, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": {}},
        {"identity": "other"},
        {"progress": {"epoch": 1, "unknown": 2}},
        {"progress": {"epoch": "1"}},
        {"progress": {"epoch": 7}},
        {"progress": {"epoch": 2, "history": [{"epoch": 1}]}},
        {"model": {}},
        {"optimizer": None},
        {"average": None},
        {"scheduler": {"step": 3}},
    ],
)
def test_a_crafted_state_is_one_sentence(short: Recipe, cut: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    content = torch.load(cut, weights_only=True)
    torch.save(content | changes, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match=r"state.pt is damaged \(\w+\); begin anew with --fresh"):
        train(short, tmp_path)


@pytest.fixture(scope="module")
def cut(root: Path, processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run that was killed in its third step."""
    output = tmp_path_factory.mktemp("cut")
    killed(processes, shortened(tiny_recipe(root)), output, "step", 3)
    return output / "state.pt"


def test_a_damaged_result_is_one_sentence(short: Recipe, tmp_path: Path) -> None:
    recipe = replace(short, optim=replace(short.optim, epochs=1))
    train(recipe, tmp_path)
    written = json.loads((tmp_path / "result.json").read_text())
    for changes in (
        {"identity": None},
        {"selected_on": "luck"},
        {"selected_on": []},
        {"history": [{}]},
        {"confusion": [[1]]},
        {"confusion": [[10**30] * 7] * 7},
        {"epoch": None},
        {"checkpoint": 3},
    ):
        (tmp_path / "result.json").write_text(json.dumps(written | changes))
        with pytest.raises(TrainingError, match=r"result.json is damaged \(\w+\); begin anew with --fresh"):
            train(recipe, tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(written | {"confusion": [[10**15] * 7] * 7}))
    assert train(recipe, tmp_path).test_clips == 49 * 10**15, "no memory for each of them"


def test_a_finished_run_is_not_done_again(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(short, tmp_path)
    monkeypatch.setattr(Trainer, "run_epoch", None)
    again = train(short, tmp_path)
    assert "finished; --fresh would train again" in capsys.readouterr().err
    assert again.to_dict() == first.to_dict()
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == {"identity": written["identity"], **first.to_dict()}
