"""The training loop: clips in, checkpoints out, and a seed that decides everything in between."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dfer_deploy.checkpoint import save_checkpoint
from dfer_deploy.clips.annotations import Annotation, read_annotations, warn_about_frame_counts
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.clips.reading import Clip
from dfer_deploy.console import progress_bar
from dfer_deploy.errors import DferDeployError
from dfer_deploy.metrics import Score
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.specs import MAX_FRAMES
from dfer_deploy.train.data import TrainingClips
from dfer_deploy.train.evaluation import evaluate
from dfer_deploy.train.initialisation import model_spec, starting_model
from dfer_deploy.train.optimisation import build_optimizer, build_scheduler
from dfer_deploy.train.recipe import Recipe


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave.

    Attributes:
        checkpoint: the file to use: ``best.pt`` where the recipe selects by the test list, else ``last.pt``.
        score: of that checkpoint on the test list.
        class_names: in the order of the score's recalls.
        epoch: the epoch that it is from, counted from 1.
        selected_on: what the epoch was chosen by: ``last``, or ``test``, which makes the score optimistic.
        test_clips: number of clips behind the score.
        seconds: wall time of the whole run.
        losses: mean training loss of every epoch.
    """

    checkpoint: Path
    score: Score
    class_names: tuple[str, ...]
    epoch: int
    selected_on: str
    test_clips: int
    seconds: float
    losses: tuple[float, ...]


def train(recipe: Recipe, output: Path) -> TrainingResult:
    """Trains a model and writes ``last.pt`` (and ``best.pt`` when the recipe selects by the test list).

    On a CPU, two runs of one recipe with the same number of threads give the same weights, bit for bit.

    Args:
        recipe: everything about the run.
        output: folder of the checkpoints, created if need be; older checkpoints in it are replaced.

    Raises:
        DferDeployError: a list or clip cannot be read, the pretrained weights cannot be had, the device is absent, or
            the loss is not finite any more.
    """
    start = time.perf_counter()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DferDeployError(f"cannot make the folder {output} ({error.strerror}); choose another -o") from error
    device = _device(recipe.run.device)
    spec = model_spec(recipe.model)
    names, image_size = spec.prompts.class_names, spec.clip.vision.image_size
    data, root = recipe.data, Path(recipe.data.root or ".")
    annotations = read_annotations(root / data.train_list, len(names), data.data_root)
    warn_about_frame_counts(annotations)
    tests = LabelledClips.from_list(root / data.test_list, len(names), image_size, data.data_root)
    clips = TrainingClips(annotations, image_size, recipe.augment, recipe.run.seed, data.decode_size, data.cache)
    test_clips: Iterable[tuple[Annotation, Clip]] = list(tests) if data.cache else tests
    torch.manual_seed(recipe.run.seed)
    model = starting_model(recipe.model, spec, clips).to(device)

    trainer = _Trainer(model, clips, recipe, device)
    kept: TrainingResult | None = None
    with progress_bar() as bar:
        task = bar.add_task("training", total=recipe.optim.epochs * trainer.steps_per_epoch)
        for epoch in range(1, recipe.optim.epochs + 1):

            def show(loss: float, accuracy: float, epoch: int = epoch) -> None:
                bar.update(task, advance=1, description=f"epoch {epoch} loss {loss:.2f} accuracy {accuracy:.0%}")

            trainer.run_epoch(epoch, show)
            last = epoch == recipe.optim.epochs
            if not last and recipe.run.select == "last":
                # What a crash later on does not lose.
                save_checkpoint(output / "last.pt", model, _provenance(recipe, epoch, None, trainer.losses, root))
                continue
            evaluation = evaluate(model, test_clips)
            score = evaluation.score(names)
            chosen = recipe.run.select == "last" or kept is None or score.war > kept.score.war
            kept_file = output / ("last.pt" if recipe.run.select == "last" else "best.pt")
            files = {output / "last.pt"} if last else set()
            for file in files | ({kept_file} if chosen else set()):
                save_checkpoint(file, model, _provenance(recipe, epoch, score, trainer.losses, root))
            if chosen:
                kept = TrainingResult(
                    checkpoint=kept_file,
                    score=score,
                    class_names=names,
                    epoch=epoch,
                    selected_on=recipe.run.select,
                    test_clips=len(evaluation.labels),
                    seconds=0.0,
                    losses=(),
                )
    tests.warn_about_unreadable()
    assert kept is not None  # noqa: S101 - a recipe has at least one epoch
    return replace(kept, seconds=time.perf_counter() - start, losses=tuple(trainer.losses))


class _Trainer:
    """Model, optimiser and schedule of a run."""

    def __init__(self, model: DferClip, clips: TrainingClips, recipe: Recipe, device: torch.device) -> None:
        self.model, self.clips, self.recipe, self.device = model, clips, recipe, device
        self.steps_per_epoch = -(-len(clips) // recipe.optim.batch_size)
        self.optimizer = build_optimizer(model, recipe.optim)
        self.scheduler = build_scheduler(self.optimizer, recipe.optim, self.steps_per_epoch)
        self.trainable = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.losses: list[float] = []

    def run_epoch(self, epoch: int, show: Callable[[float, float], None]) -> None:
        """One pass over the clips; ``show`` is given the running means of loss and accuracy after every step."""
        optim = self.recipe.optim
        frames_per_clip = optim.short_frames if epoch <= optim.short_epochs else MAX_FRAMES
        self.model.train()
        loss_sum, hits, seen = 0.0, 0, 0
        for frames, labels in self.clips.batches(epoch, optim.batch_size, frames_per_clip):
            logits = self.model(images_from_frames(frames.to(self.device)))
            labels = labels.to(self.device)
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if optim.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.trainable, optim.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DferDeployError(
                    f"the loss became {value} in epoch {epoch}; lower the learning rates or set optim.clip_norm"
                )
            loss_sum += value * len(labels)
            hits += int((logits.detach().argmax(dim=1) == labels).sum())
            seen += len(labels)
            show(loss_sum / seen, hits / seen)
        self.losses.append(loss_sum / seen)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DferDeployError('run.device is "cuda" and PyTorch finds no CUDA device; set it to "auto" or "cpu"')
    return torch.device(name)


def _provenance(recipe: Recipe, epoch: int, score: Score | None, losses: list[float], root: Path) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "seed": recipe.run.seed,
        "selected_on": recipe.run.select,
        "test_uar": None if score is None else score.uar,
        "test_war": None if score is None else score.war,
        "train_loss": losses[-1],
        "frame_interval_s": recipe.data.frame_interval_s,
        "recipe": recipe.to_dict(),
        "dataset": _dataset_description(root),
    }


def _dataset_description(root: Path) -> dict[str, Any]:
    """What the data set says about itself (the drawn one does), and where it was."""
    try:
        described = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        described = None
    return {"root": str(root), "description": described}
