"""Model, optimiser and schedule, and the training step: in parts, on several processes, in lower precision."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dfer_deploy.errors import TrainingError
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.specs import MAX_FRAMES, require
from dfer_deploy.train.data import TrainingClips
from dfer_deploy.train.distributed import Processes
from dfer_deploy.train.optim_recipe import OptimRecipe
from dfer_deploy.train.optimisation import build_optimizer, build_scheduler, rate_factor
from dfer_deploy.train.state import Progress

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Changes the weights of a model, step by step. On a CPU the recipe determines every bit of the result.

    Attributes:
        outcome: the model to score and to write: the average of the weights if the recipe asks for one.
    """

    def __init__(
        self,
        model: DferClip,
        parts: Mapping[str, list[nn.Parameter]],
        clips: TrainingClips,
        recipe: OptimRecipe,
        processes: Processes,
    ) -> None:
        """Prepare a training that has not begun.

        Args:
            model: model with its starting weights, on the processes' device.
            parts: its trained parameters by part, as returned by ``trainable_parts``; all others are frozen.
            clips: the training clips.
            recipe: the settings.
            processes: the processes; each computes its share of every step.

        Raises:
            DferDeployError: the device does not support the precision.
        """
        require(
            recipe.precision != "fp16" or processes.device.type == "cuda",
            'optim.precision is "fp16" and the device a CPU, expected "fp32" or "bf16" there; change it',
        )
        self.model, self.clips, self.recipe, self.processes = model, clips, recipe, processes
        self.steps_per_epoch = -(-len(clips) // recipe.batch_size)
        self.optimizer = build_optimizer(parts, recipe)
        self.scheduler = build_scheduler(self.optimizer, recipe, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.precision == "fp16")
        self.trainable = nn.ParameterList(p for group in self.optimizer.param_groups for p in group["params"])
        self.average: AveragedModel | None = None
        self.outcome = model
        if recipe.ema_decay is not None:
            average = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.trainable, multi_avg_fn=average)
            # A copy of the model that shares the frozen parameters.
            shared = {id(parameter): parameter for parameter in model.parameters()}
            averaged = zip(self.trainable, self.average.module.parameters(), strict=True)
            self.outcome = copy.deepcopy(model, shared | {id(ours): mean for ours, mean in averaged})
        if recipe.checkpoint_activations and parts.get("image_encoder"):
            model.image_encoder.set_grad_checkpointing()
        self.parallel: nn.Module = model
        if processes.world > 1:
            # About gradients with dimensions of size 1, whose strides have no meaning.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self.parallel = DistributedDataParallel(
                model, [processes.device] if processes.device.type == "cuda" else None, broadcast_buffers=False
            )

    def rates(self, epoch: int) -> dict[str, float]:
        """Return the learning rate of every part in the last step of an epoch."""
        factor = rate_factor(epoch - 1 / self.steps_per_epoch, self.recipe)
        return {group["name"]: group["initial_lr"] * factor for group in self.optimizer.param_groups}

    def run_epoch(self, progress: Progress, after_step: Callable[[float], None]) -> None:
        """Run the rest of the present epoch.

        Args:
            progress: the progress; updated after every step.
            after_step: is called with the step's mean loss after every step, when model and progress agree.

        Raises:
            DferDeployError: the loss is not finite, or too many clips cannot be read; in every process.
        """
        self.model.train()
        batches = self.clips.batches(
            progress.epoch,
            self.recipe.batch_size,
            self.recipe.short_frames if progress.epoch <= self.recipe.short_epochs else MAX_FRAMES,
            progress.step,
            (self.processes.rank, self.processes.world),
        )
        for frames, labels in batches:
            sums = self.processes.sums([*self._step(frames, labels), len(self.clips.found)])
            loss_sum, hits, seen, unreadable = sums
            if unreadable:
                self.clips.leave_out(self.processes.merged(self.clips.found))
            if not math.isfinite(loss_sum):
                raise TrainingError(
                    f"the loss became {loss_sum} in epoch {progress.epoch}; lower the learning rates or set "
                    "optim.clip_norm"
                )
            progress.step += 1
            progress.loss_sum += loss_sum
            progress.hits += int(hits)
            progress.seen += int(seen)
            after_step(loss_sum / max(1.0, seen))

    def tensors(self) -> dict[str, Any]:
        """Return everything on which a step depends, besides the clips; see ``restore``."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Restore the state of ``tensors``.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError, AttributeError: the tensors do not fit this trainer.
        """
        self.model.load_state_dict(tensors["model"])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        if tensors["scheduler"].keys() != self.scheduler.state_dict().keys():
            raise ValueError("another schedule")
        self.scheduler.load_state_dict(tensors["scheduler"])
        self.scaler.load_state_dict(tensors["scaler"])

    def _step(self, frames: Tensor, labels: Tensor) -> tuple[float, float, float]:
        """Make one step of all processes on this one's share; return its summed loss, correct answers and clips."""
        (clips,) = self.processes.sums([len(labels)])
        own = len(labels)
        if not own:
            # The last batch may have fewer clips than there are processes, and all must take part in the sums.
            frames, labels = frames.new_zeros(1, *frames.shape[1:]), labels.new_zeros(1)
        # The processes' gradients are averaged, but the loss is the mean over all clips of the joint batch.
        scale = self.processes.world / clips if own else 0.0
        parts = min(self.recipe.accumulate, len(labels))
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.processes.device)
        self.optimizer.zero_grad()
        for part, (images, truth) in enumerate(
            zip(frames.tensor_split(parts), labels.tensor_split(parts), strict=True), 1
        ):
            with self._without_sums() if part < parts else contextlib.nullcontext():
                loss, right = self._loss(images.to(self.processes.device), truth.to(self.processes.device))
                self.scaler.scale(loss * scale).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            hits += right
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trainable, self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.trainable)
        return (float(loss_sum), float(hits), float(own)) if own else (0.0, 0.0, 0.0)

    def _loss(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the clips, and the number of correct answers."""
        dtype = _AUTOCAST.get(self.recipe.precision)
        with torch.autocast(frames.device.type, dtype, enabled=dtype is not None):
            logits = self.parallel(images_from_frames(frames)).float()
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.recipe.label_smoothing)
        return loss, (logits.detach().argmax(dim=1) == labels).sum()

    def _without_sums(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients in this process, without adding up over the processes."""
        if isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()  # type: ignore[no-any-return,unused-ignore]
        return contextlib.nullcontext()
