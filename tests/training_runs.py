"""Tiny recipes on drawn faces, and what processes of their own do with them (they import this module by its name)."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import ClipSpec, PromptSpec, TemporalSpec, TextSpec, VisionSpec
from dfer_deploy.train import loop, trainer
from dfer_deploy.train.expressions import CLASS_NAMES
from dfer_deploy.train.model_recipe import ModelRecipe
from dfer_deploy.train.optim_recipe import OptimRecipe
from dfer_deploy.train.recipe import AugmentRecipe, DataRecipe, Recipe, RunRecipe

MODEL = ModelRecipe(
    PromptSpec(CLASS_NAMES, CLASS_NAMES, contexts=2),
    clip=ClipSpec(VisionSpec(32, 8, 32, 1, 16), TextSpec(width=16, layers=1, heads=1), embed_dim=32),
    temporal=TemporalSpec(heads=2, head_width=8, mlp_width=32),
    fast_start=True,
)
OPTIM = OptimRecipe(
    name="adamw",
    lr_image_encoder=3e-3,
    lr_temporal=1e-3,
    lr_prompts=1e-3,
    epochs=25,
    batch_size=7,
    schedule="cosine",
    clip_norm=1.0,
    short_epochs=12,
)
STILL = AugmentRecipe(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)


def tiny_recipe(root: Path) -> Recipe:
    """A model of 32 × 32 pixels that learns 28 drawn clips, 4 of each class, in some seconds."""
    return Recipe(
        MODEL,
        DataRecipe(root=str(root), cache=True),
        OPTIM,
        STILL,
        RunRecipe(device="cpu", select="last", tensorboard=False),
    )


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint holds."""
    return dict(torch.load(path, weights_only=True)["state_dict"])


def train_until_killed(recipe: Recipe, output: Path, where: str, count: int) -> None:
    """Trains and kills its own process with SIGKILL: before the given ``count`` of a kind of event is done.

    Args:
        recipe: of the run.
        output: folder of the run.
        where: ``step``: after so many steps, before any of it is noted; ``state``: half of the state is written;
            ``moved``: an epoch's checkpoints are written, its state is not; ``finish``: before the result is written.
        count: how many times that happens.
    """
    events = 0

    def killing(function: Callable[..., Any], spoil: Callable[..., None] | None = None) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal events
            events += 1
            if events == count:
                if spoil is not None:
                    spoil(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    def half_written(content: object, path: Path) -> None:
        path.write_bytes(b"half of a state")

    torch.set_num_threads(1)
    if where == "step":
        trainer.Trainer._step = killing(trainer.Trainer._step)  # type: ignore[method-assign]
    elif where == "state":
        torch.save = killing(torch.save, half_written)
    elif where == "moved":
        loop.save_state = killing(loop.save_state)
    else:
        loop.write_json = killing(loop.write_json)
    loop.train(recipe, output)


def train_with_full_disk(recipe: Recipe, output: Path, message: Path) -> None:
    """Trains where no file can become larger than 20 kB, and writes the sentence that ends it into ``message``."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        loop.train(recipe, output)
    except DferDeployError as error:
        message.write_text(str(error))


def train_as_rank(
    rank: int, world: int, port: int, recipe: Recipe, output: Path, message: Path, dies_at: int | None
) -> None:
    """Trains as ``torchrun`` would start it; a DferDeployError goes into ``message``.

    Args:
        rank, world, port: who this is, how many there are, and where they meet.
        recipe: of the run.
        output: folder of the run.
        message: file for this process's error.
        dies_at: the step at which this process dies, None for none.
    """
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        if dies_at is None:
            loop.train(recipe, output)
        else:
            train_until_killed(recipe, output, "step", dies_at)
    except DferDeployError as error:
        message.write_text(str(error))
        sys.exit(2)
