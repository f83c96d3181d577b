"""A step in parts, with an average, in lower precision or with less memory is the same step, as far as it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training_runs import weights_of

from dfer_deploy.errors import SettingError
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.train.data import TrainingClips
from dfer_deploy.train.distributed import Processes
from dfer_deploy.train.initialisation import model_spec, starting_model, trainable_parts
from dfer_deploy.train.layouts import training_annotations
from dfer_deploy.train.loop import train
from dfer_deploy.train.recipe import Recipe
from dfer_deploy.train.state import Progress
from dfer_deploy.train.trainer import Trainer


def trainer_of(recipe: Recipe, **changes: Any) -> Trainer:
    """Before its first step, of SGD: its steps are proportional to the gradients, which AdamW's are not."""
    sgd = {"name": "sgd", "lr_image_encoder": 1e-2, "lr_temporal": 1e-2, "lr_prompts": 1e-2, "schedule": "multistep"}
    settings = replace(recipe.optim, epochs=1, batch_size=8, short_epochs=0, clip_norm=None, **(sgd | changes))
    clips = TrainingClips(training_annotations(recipe), 32, recipe.augment, 0, cache=True)
    torch.manual_seed(0)
    model = starting_model(recipe.model, model_spec(recipe.model), clips)
    parts = trainable_parts(model, recipe.model.strategy)
    return Trainer(model, parts, clips, settings, Processes(0, 1, torch.device("cpu")))


def trained(trainer: Trainer) -> tuple[DferClip, Progress]:
    progress = Progress()
    trainer.run_epoch(progress, lambda loss: None)
    return trainer.outcome, progress


def difference(first: DferClip, second: DferClip) -> float:
    """Largest difference between two models' parameters."""
    theirs = second.state_dict()
    return max(float((value - theirs[name]).abs().max()) for name, value in first.state_dict().items())


def test_accumulated_parts_are_the_whole_step(recipe: Recipe) -> None:
    # 28 clips in batches of 8: the last one has 4, and 3 parts of either are of different sizes.
    whole, whole_progress = trained(trainer_of(recipe))
    parts, progress = trained(trainer_of(recipe, accumulate=3))
    # A mean of the parts' means instead of the mean over the clips would be off by tens of percent of the movement.
    assert difference(whole, parts) < 1e-4 * difference(whole, trainer_of(recipe).model)
    assert (progress.seen, progress.step) == (28, 4)
    assert progress.loss == pytest.approx(whole_progress.loss, rel=1e-5)


def test_checkpointed_activations_give_the_same_bits(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, checkpoint_activations=True)
    assert trainer.model.image_encoder.transformer.grad_checkpointing
    assert difference(trained(trainer)[0], trained(trainer_of(recipe))[0]) == 0


def test_the_average_follows_the_weights(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, ema_decay=0.75)
    seen: list[torch.Tensor] = []
    trainer.run_epoch(Progress(), lambda loss: seen.append(trainer.model.temporal_net.cls_token.detach().clone()))
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(trainer.outcome.temporal_net.cls_token.detach(), expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(expected, seen[-1])


def test_the_average_is_kept_of_what_learns_only(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, ema_decay=0.75)
    ours, averaged = (dict(model.named_parameters()) for model in (trainer.model, trainer.outcome))
    shared = {name for name in ours if ours[name].data_ptr() == averaged[name].data_ptr() and ours[name].numel()}
    assert {name.partition(".")[0] for name in shared} == {"text_encoder"}
    assert trainer.average is not None
    assert len(list(trainer.average.module.parameters())) == len(trainer.trainable) == len(ours) - len(shared)


@pytest.mark.parametrize("strategy", ["dfer_clip", "cocoop"])
def test_no_step_draws_anything_so_the_state_needs_no_generator(recipe: Recipe, strategy: Any) -> None:
    model = replace(recipe.model, strategy=strategy)
    trainer = trainer_of(replace(recipe, model=model), ema_decay=0.5, checkpoint_activations=strategy == "dfer_clip")
    before = torch.get_rng_state()
    trained(trainer)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_average_is_what_is_written_and_scored(recipe: Recipe, tmp_path: Path) -> None:
    plain = replace(recipe, optim=replace(recipe.optim, epochs=1))
    averaged = replace(plain, optim=replace(plain.optim, ema_decay=0.9))
    results = [train(one, tmp_path / str(index)) for index, one in enumerate((plain, averaged))]
    weights = [weights_of(result.checkpoint)["temporal_net.cls_token"] for result in results]
    assert not torch.equal(*weights)
    assert results[0].losses == results[1].losses


def test_label_smoothing_is_cross_entropy_s(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, label_smoothing=0.3)
    frames, labels = next(trainer.clips.batches(1, 8))
    with torch.no_grad():
        expected = F.cross_entropy(trainer.model(images_from_frames(frames)), labels, label_smoothing=0.3)
    losses: list[float] = []
    trainer.run_epoch(Progress(), losses.append)
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_bf16_is_close_and_keeps_fp32_weights(recipe: Recipe) -> None:
    losses: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision, seen in losses.items():
        trainer = trainer_of(recipe, precision=precision)
        trainer.run_epoch(Progress(), seen.append)
    assert {parameter.dtype for parameter in trainer.outcome.parameters()} == {torch.float32}
    # bf16 rounds to 2⁻⁸, and the logits are cosines divided by 0.01.
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], abs=100 * 2**-8)
    assert losses["bf16"][0] != losses["fp32"][0]


def test_fp16_is_refused_on_a_cpu(recipe: Recipe) -> None:
    with pytest.raises(SettingError, match='"fp16" and the device a CPU, expected "fp32" or "bf16"'):
        trainer_of(recipe, precision="fp16")


@pytest.mark.parametrize(("strategy", "moved"), [("coop", "prompt_learner"), ("linear_probe", "head")])
def test_what_the_strategy_freezes_keeps_no_gradient(recipe: Recipe, strategy: str, moved: str) -> None:
    recipe = replace(recipe, model=replace(recipe.model, strategy=strategy, fast_start=False))  # type: ignore[arg-type]
    trainer = trainer_of(recipe, lr_head=1e-2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    after = trained(trainer)[0]
    changed = {
        name.partition(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {moved}
    assert {name.partition(".")[0] for name, value in after.named_parameters() if value.grad is not None} == {moved}


def test_a_restored_trainer_goes_on_with_the_same_bits(recipe: Recipe) -> None:
    settings = {"name": "adamw", "ema_decay": 0.5, "accumulate": 2}
    first, progress = trainer_of(recipe, **settings), Progress()
    first.run_epoch(progress, lambda loss: None)
    second = trainer_of(recipe, **settings)
    interrupted = Progress()

    def stop(loss: float) -> None:
        if interrupted.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        second.run_epoch(interrupted, stop)
    third = trainer_of(recipe, **settings)
    third.restore(second.tensors())
    third.run_epoch(interrupted, lambda loss: None)
    assert difference(third.outcome, first.outcome) == 0
    assert difference(third.model, first.model) == 0
    assert interrupted == progress
