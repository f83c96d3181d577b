"""Training on a tiny drawn set: it learns, it is reproducible, and its checkpoint is the model that was scored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import MODEL, OPTIM, weights_of

from dfer_deploy.checkpoints.checkpoint import load_checkpoint
from dfer_deploy.clips.annotations import Annotation, read_annotations
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.clips.reading import Clip
from dfer_deploy.errors import ClipError, TrainingError
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.train.data import TrainingClips
from dfer_deploy.train.evaluation import Evaluation, evaluate
from dfer_deploy.train.expressions import CLASS_NAMES
from dfer_deploy.train.initialisation import model_spec, starting_model, trainable_parts
from dfer_deploy.train.loop import train
from dfer_deploy.train.optim_recipe import OptimRecipe
from dfer_deploy.train.optimisation import build_optimizer, rate_factor
from dfer_deploy.train.recipe import AugmentRecipe, Recipe


def clips_of(recipe: Recipe, **changes: object) -> TrainingClips:
    annotations = read_annotations(Path(recipe.data.root or "") / "train.txt", 7)
    return TrainingClips(annotations, 32, AugmentRecipe(), **{"seed": 0, **changes})  # type: ignore[arg-type]


def test_the_training_clips_are_learned_and_the_checkpoint_is_the_scored_model(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, data=replace(recipe.data, test_list="train.txt", frames_per_s=5.0))
    result = train(recipe, tmp_path)
    assert result.checkpoint == tmp_path / "last.pt"
    assert len(result.losses) == OPTIM.epochs
    chance = np.log(7)
    assert result.losses[-1] < 0.7 * chance
    assert result.score.war > 50
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.spec == model_spec(recipe.model)
    tests = LabelledClips.from_list(Path(recipe.data.root or "") / "train.txt", 7, 32)
    score = evaluate(checkpoint.build_model(), tests).score(CLASS_NAMES)
    assert (score.uar, score.war) == (result.score.uar, result.score.war)
    assert checkpoint.provenance["recipe"] == recipe.to_dict()
    assert checkpoint.provenance["test_war"] == score.war
    assert checkpoint.provenance["selected_on"] == "last"
    # The drawn clips have 10 to 24 frames, of which the model sees 16.
    lengths = [annotation.listed_frames for annotation in tests.annotations]
    assert np.median(lengths) > 16
    assert checkpoint.frame_interval_s == np.median(lengths) / 16 / 5
    assert checkpoint.provenance["dataset"]["description"]["spec"]["seed"] == 0


def test_a_seed_decides_every_bit(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, optim=replace(recipe.optim, epochs=2, short_epochs=1))
    first = weights_of(train(recipe, tmp_path / "first").checkpoint)
    again = weights_of(train(recipe, tmp_path / "again").checkpoint)
    other = weights_of(train(replace(recipe, run=replace(recipe.run, seed=1)), tmp_path / "other").checkpoint)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image_encoder.conv1.weight"], other["image_encoder.conv1.weight"])


def test_all_parts_learn_except_the_frozen_text_encoder(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, optim=replace(recipe.optim, epochs=1, short_epochs=0))
    torch.manual_seed(0)
    before = starting_model(recipe.model, model_spec(recipe.model), clips_of(recipe)).state_dict()
    after = weights_of(train(recipe, tmp_path).checkpoint)
    changed = {name.partition(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"image_encoder", "temporal_net", "prompt_learner"}


def test_selecting_by_the_test_list_keeps_the_best_epoch_too(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wars: list[float] = []

    def watched(model: DferClip, clips: LabelledClips) -> Evaluation:
        evaluation = evaluate(model, clips)
        wars.append(evaluation.score(CLASS_NAMES).war)
        return evaluation

    monkeypatch.setattr("dfer_deploy.train.loop.evaluate", watched)
    # A rate that does not fall makes the scores go up and down.
    optim = replace(recipe.optim, schedule="multistep", milestones=())
    data = replace(recipe.data, test_list="train.txt")
    result = train(replace(recipe, data=data, optim=optim, run=replace(recipe.run, select="test")), tmp_path)
    assert len(wars) == OPTIM.epochs
    assert max(wars) not in (wars[0], wars[-1]), "choose another seed: here the best epoch is the first or the last"
    assert result.score.war == max(wars)
    assert result.epoch == 1 + wars.index(max(wars))
    assert (result.checkpoint, result.selected_on) == (tmp_path / "best.pt", "test")
    assert result.is_optimistic
    assert "optimistic" in json.loads((tmp_path / "result.json").read_text())["selection"]
    best, last = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt")
    assert (best.provenance["epoch"], best.provenance["test_war"]) == (result.epoch, max(wars))
    assert best.provenance["optimistic"] is True
    assert (last.provenance["epoch"], last.provenance["test_war"]) == (OPTIM.epochs, wars[-1])


def test_selecting_by_validation_looks_at_the_test_list_once(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], float]] = []

    def watched(model: DferClip, clips: Iterable[tuple[Annotation, Clip]]) -> Evaluation:
        evaluation = evaluate(model, clips)
        names = {annotation.name for annotation in evaluation.annotations}
        seen.append((names, evaluation.score(CLASS_NAMES).war))
        return evaluation

    trained: set[str] = set()
    batches = TrainingClips.batches

    def recorded(self: TrainingClips, *arguments: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        trained.update(annotation.name for annotation in self.annotations)
        return batches(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("dfer_deploy.train.loop.evaluate", watched)
    monkeypatch.setattr(TrainingClips, "batches", recorded)
    optim = replace(recipe.optim, schedule="multistep", milestones=(), epochs=25, batch_size=4)
    data = replace(recipe.data, validation_share=0.5)
    result = train(replace(recipe, data=data, optim=optim, run=replace(recipe.run, select="validation")), tmp_path)
    tests = {annotation.name for annotation in read_annotations(Path(data.root or "") / "test.txt", 7)}
    *validations, final = seen
    assert final == (tests, result.score.war)
    (validation,) = {frozenset(names) for names, _ in validations}
    assert len(validation) == 14
    assert not validation & (trained | tests)
    assert len(validation | trained) == 28
    wars = [war for _, war in validations]
    assert [entry["validation_war"] for entry in result.history] == wars
    assert len(set(wars)) > 1, "choose another seed: here every epoch is as good"
    assert result.epoch == 1 + wars.index(max(wars))
    assert (result.checkpoint, result.selected_on) == (tmp_path / "best.pt", "validation")
    best = load_checkpoint(tmp_path / "best.pt").provenance
    assert (best["validation_war"], best["test_war"], best["optimistic"]) == (max(wars), result.score.war, False)
    assert load_checkpoint(tmp_path / "last.pt").provenance["epoch"] == 25


@pytest.mark.parametrize("select", ["validation", "test"])
def test_zero_shot_scores_and_writes_without_an_epoch(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: Any
) -> None:
    model = replace(recipe.model, strategy="zero_shot", fast_start=False)
    for unused in ("split_validation", "TrainingClips"):
        monkeypatch.setattr(f"dfer_deploy.train.loop.{unused}", None)
    result = train(replace(recipe, model=model, run=replace(recipe.run, select=select)), tmp_path)
    assert (result.epoch, result.selected_on, result.losses) == (0, "none", ())
    assert result.checkpoint == tmp_path / "last.pt"
    assert result.to_dict()["selection"] == "no epoch: nothing was trained"
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.provenance["test_war"] == result.score.war
    assert (checkpoint.provenance["selected_on"], checkpoint.provenance["optimistic"]) == ("none", False)
    assert not (tmp_path / "curves.png").exists()


def test_only_the_first_epochs_see_short_clips(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    batches = TrainingClips.batches

    def watched(self: TrainingClips, *arguments: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for frames, labels in batches(self, *arguments):  # type: ignore[arg-type]
            seen.append(tuple(frames.shape))
            yield frames, labels

    monkeypatch.setattr(TrainingClips, "batches", watched)
    train(replace(recipe, optim=replace(recipe.optim, epochs=3, short_epochs=2, short_frames=4)), tmp_path)
    assert seen == [(7, 4, 32, 32, 3)] * 8 + [(7, 16, 32, 32, 3)] * 4


def test_training_clips_change_from_epoch_to_epoch_and_not_with_the_cache(recipe: Recipe) -> None:
    cached, read = clips_of(recipe, cache=True, decode_size=40), clips_of(recipe, decode_size=40)
    for index in (0, 5):
        assert np.array_equal(cached.clip(index, 1), read.clip(index, 1))
        assert not np.array_equal(cached.clip(index, 1), cached.clip(index, 2))
    assert cached.clip(0, 1, 4).shape == (4, 32, 32, 3)
    assert not np.array_equal(cached.clip(0, 1), clips_of(recipe, decode_size=40, seed=1).clip(0, 1))


def test_an_epoch_has_every_clip_once_with_its_label(recipe: Recipe) -> None:
    clips = clips_of(recipe, cache=True)
    batches = list(clips.batches(1, 8))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 4]
    shown = {frames.numpy().tobytes(): int(label) for batch in batches for frames, label in zip(*batch, strict=True)}
    assert shown == {clips.clip(index, 1).tobytes(): clips.annotations[index].label for index in range(28)}
    orders = [torch.cat([labels for _, labels in clips.batches(epoch, 8)]).tolist() for epoch in (1, 2)]
    assert orders[0] != orders[1]


def test_fast_start_whitens_the_patches(recipe: Recipe) -> None:
    clips = clips_of(recipe)
    model = starting_model(recipe.model, model_spec(recipe.model), clips)
    images = images_from_frames(torch.from_numpy(clips.example_frames(1024))[None])[0]
    with torch.no_grad():
        responses = model.image_encoder.conv1(images).flatten(2)
        responses = responses - responses.mean(dim=0)
    covariance = torch.cov(responses.transpose(0, 1).flatten(1))
    spread = covariance.diagonal()
    assert 0.2 < float(spread.min()) <= float(spread.max()) < 1.1
    assert float((covariance - torch.diag(spread)).abs().max()) < 0.02


def test_schedules() -> None:
    steps = OptimRecipe(epochs=50, milestones=(30, 40), gamma=0.1)
    assert [rate_factor(epoch, steps) for epoch in (0, 29.9, 30, 40)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = OptimRecipe(schedule="cosine", epochs=10, warmup_epochs=2)
    factors = [rate_factor(epoch, cosine) for epoch in (0, 1, 2, 6, 10)]
    assert factors == pytest.approx([0.005, 0.505, 1, 0.5, 0], abs=1e-6)
    assert factors[0] > 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_part_has_its_own_rate(name: str) -> None:
    model = DferClip(model_spec(MODEL))
    parts = trainable_parts(model, "dfer_clip")
    optimizer = build_optimizer(parts, replace(OPTIM, name=name, lr_prompts=7e-3))  # type: ignore[arg-type]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.image_encoder.conv1.weight)] == 3e-3
    assert rates[id(model.temporal_net.cls_token)] == 1e-3
    assert rates[id(model.prompt_learner.ctx)] == 7e-3
    assert not any(id(parameter) in rates for parameter in model.text_encoder.parameters())


def test_what_people_look_at_is_there(recipe: Recipe, tmp_path: Path) -> None:
    optim, run = replace(recipe.optim, epochs=2, short_epochs=0), replace(recipe.run, tensorboard=True)
    result = train(replace(recipe, optim=optim, run=run), tmp_path)
    for name in ("curves.png", "confusion.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert picture.width >= 600
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    assert [event.value for event in events.Scalars("train/war")] == pytest.approx(
        [entry["train_war"] for entry in result.history]
    )
    assert {"rate/temporal", "rate/image_encoder", "rate/prompts"} <= set(events.Tags()["scalars"])
    assert not (tmp_path / "state.pt").exists()


def test_a_diverged_loss_is_an_error_and_writes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    wild = replace(recipe.optim, name="sgd", lr_image_encoder=1e30, lr_temporal=1e30, clip_norm=None)
    with pytest.raises(TrainingError, match="lower the learning rates"):
        train(replace(recipe, optim=wild), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("select", ["test", "last"])
def test_too_many_unreadable_test_clips_end_the_run_before_anything_is_chosen(
    recipe: Recipe, root: Path, tmp_path: Path, select: Any
) -> None:
    tests = (root / "test.txt").read_text().splitlines()
    for name in ("train.txt", "test.txt"):
        lines = [f"{root}/{line}" for line in (root / name).read_text().splitlines()]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    with (tmp_path / "test.txt").open("a") as file:
        file.write(f"{tmp_path / 'absent'} 16 0\n")
    recipe = replace(recipe, data=replace(recipe.data, root=str(tmp_path)), run=replace(recipe.run, select=select))
    recipe = replace(recipe, optim=replace(recipe.optim, epochs=1))
    with pytest.raises(ClipError, match=f"1 of {len(tests) + 1} "):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "best.pt").exists()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("select", ["test", "last"])
def test_a_result_says_which_test_clips_are_missing(recipe: Recipe, root: Path, tmp_path: Path, select: Any) -> None:
    lines = [f"{root}/{line}" for line in (root / "train.txt").read_text().splitlines()]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "test.txt").write_text("\n".join([*lines, f"{tmp_path / 'absent'} 16 0"]) + "\n")
    recipe = replace(recipe, data=replace(recipe.data, root=str(tmp_path)), run=replace(recipe.run, select=select))
    train(replace(recipe, optim=replace(recipe.optim, epochs=1)), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written["listed_clips"], written["test_clips"]) == (29, 28)
    assert list(written["unreadable"]) == [str(tmp_path / "absent")]


def test_a_device_without_enough_memory_is_one_sentence(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has")

    monkeypatch.setattr("dfer_deploy.train.trainer.Trainer._step", full)
    with pytest.raises(TrainingError, match=r"CUDA out of memory\).*optim.accumulate, which is 1, or set optim.checkp"):
        train(recipe, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_absent_device_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='"cuda"'):
        train(replace(recipe, run=replace(recipe.run, device="cuda")), tmp_path)
