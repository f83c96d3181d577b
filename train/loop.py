"""A training run, from clips to checkpoints. The seed determines everything random."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from dfer_deploy.checkpoints.checkpoint import FRAME_INTERVAL, load_checkpoint, save_checkpoint
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.clips.reading import Clip
from dfer_deploy.console import progress as shown
from dfer_deploy.console import progress_bar, stderr
from dfer_deploy.drawing.pictures import write_confusion_picture
from dfer_deploy.errors import TrainingError
from dfer_deploy.files import write_json
from dfer_deploy.metrics import Score
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.specs import ModelSpec
from dfer_deploy.train.curves import Scalars, write_curves
from dfer_deploy.train.data import TrainingClips, frame_interval_s
from dfer_deploy.train.distributed import Processes, training_processes
from dfer_deploy.train.evaluation import evaluate
from dfer_deploy.train.initialisation import model_spec, starting_model, trainable_parts
from dfer_deploy.train.layouts import test_annotations, training_annotations, warn_about_shared_clips
from dfer_deploy.train.model_recipe import STRATEGIES
from dfer_deploy.train.recipe import Recipe
from dfer_deploy.train.result import TrainingResult, stored_score
from dfer_deploy.train.state import (
    DATASET,
    RESULT,
    STATE,
    Progress,
    damage_named,
    load_result,
    load_state,
    run_identity,
    save_state,
)
from dfer_deploy.train.trainer import Trainer
from dfer_deploy.train.validation import split_validation

LAST, BEST = "last.pt", "best.pt"
CURVES, CONFUSION, TENSORBOARD = "curves.png", "confusion.png", "tensorboard"


def train(recipe: Recipe, output: Path, *, fresh: bool = False) -> TrainingResult:
    """Train a model, or continue an interrupted training, and score it on the test list.

    On a CPU, two runs of one recipe with the same numbers of threads and processes give the same weights, bit for bit,
    however often they were interrupted. Under ``torchrun`` the processes share every step, and the first one writes.

    Args:
        recipe: all settings of the run.
        output: folder, created if necessary, of ``last.pt`` (after every epoch), ``best.pt`` (unless the recipe selects
            the last epoch), ``curves.png``, ``confusion.png``, ``result.json`` and TensorBoard's scalars. During the
            run it also contains ``state.pt``.
        fresh: remove the files of an earlier run in the folder. Otherwise an interrupted run of the same recipe on the
            same clips is continued, and the result of a finished run is returned again.

    Raises:
        DferDeployError: a list or too many clips cannot be read, the pretrained weights are not available, the device
            is absent or its memory too small, the loss is not finite, a file cannot be written, another process has
            ended, or the folder contains another run.
    """
    with training_processes(recipe.run.device) as processes, _device_memory(recipe):
        training, tests, spec = training_annotations(recipe), test_annotations(recipe), model_spec(recipe.model)
        warn_about_shared_clips(training, tests)
        identity = run_identity(recipe, spec, [*training, *tests])
        finished, state = processes.from_first(lambda: _earlier_run(output, identity, fresh))
        if finished is not None:
            stderr.print(f"{output} holds this run, finished; --fresh would train again", markup=False)
            return finished
        run = _Run(recipe, output, processes, identity, spec, (training, tests), state)
        run.all_epochs()
        return processes.from_first(run.finish)


def _earlier_run(
    output: Path, identity: dict[str, Any], fresh: bool
) -> tuple[TrainingResult | None, tuple[Progress, dict[str, Any]] | None]:
    """Return the result of a finished run in the folder, or the state of an interrupted one."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in output.iterdir() if not path.name.endswith(".part")}
        if found and not found & {STATE, RESULT, LAST, TENSORBOARD}:
            raise TrainingError(f"{output} holds {min(found)!r} and no run; choose a new or an empty folder as -o")
        for name in (STATE, RESULT, LAST, BEST, CURVES, CONFUSION):
            if fresh:
                (output / name).unlink(missing_ok=True)
            for half_written in output.glob(f".{name}.*.part"):  # left by a process that was killed
                half_written.unlink(missing_ok=True)
        if fresh:
            shutil.rmtree(output / TENSORBOARD, ignore_errors=True)
    except OSError as error:
        raise TrainingError(f"cannot use the folder {output} ({error.strerror}); choose another -o") from error
    described = load_result(output / RESULT, identity)
    if described is not None:
        with damage_named(output / RESULT):
            result = TrainingResult.from_dict(described, output)
        if result.checkpoint.exists():
            return result, None
    return None, load_state(output / STATE, identity)


@contextlib.contextmanager
def _device_memory(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device's memory is too small ({str(error).split('. ')[0]}); raise optim.accumulate, which is "
            f"{recipe.optim.accumulate}, or set optim.checkpoint_activations=true"
        ) from error


class _Run:
    """One run in one process."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        processes: Processes,
        identity: dict[str, Any],
        spec: ModelSpec,
        lists: tuple[list[Annotation], list[Annotation]],
        state: tuple[Progress, dict[str, Any]] | None,
    ) -> None:
        self.recipe, self.output, self.processes, self.identity, self.spec = recipe, output, processes, identity, spec
        image_size = spec.clip.vision.image_size
        data, seed = recipe.data, recipe.run.seed
        training, tests = lists
        learns = bool(STRATEGIES[recipe.model.strategy].trained)
        self.select: str = recipe.run.select if learns else "none"
        self.tests = LabelledClips(tests, image_size)
        self.tests.require_present()  # checked before hours of training, not after them
        self.compared: LabelledClips | None = self.tests if self.select == "test" else None
        if self.select == "validation":
            training, validation = split_validation(training, data.validation_share, seed)
            self.compared = LabelledClips(validation, image_size)
        rate = data.frames_per_s
        self.frame_interval_s = None if rate is None else frame_interval_s(training, rate)
        clips: TrainingClips | None = None
        if learns or recipe.model.fast_start:
            cache = data.cache and learns
            clips = TrainingClips(
                training, image_size, recipe.augment, seed, data.decode_size, cache, recipe.optim.balanced
            )
        torch.manual_seed(seed)
        model = starting_model(recipe.model, spec, clips) if state is None else DferClip(spec)
        self.model = model.to(processes.device)
        parts = trainable_parts(self.model, recipe.model.strategy)
        self.trainer: Trainer | None = None
        if clips is not None and learns:
            self.trainer = Trainer(self.model, parts, clips, recipe.optim, processes)
        self.progress = Progress()
        if state is not None and self.trainer is not None:
            self.progress, tensors = state
            with damage_named(output / STATE):
                self.trainer.restore(tensors)
            stderr.print(
                f"continues {output} in epoch {self.progress.epoch} after step {self.progress.step}", markup=False
            )
        self.start = time.perf_counter() - self.progress.seconds
        self.saved = time.perf_counter()

    def all_epochs(self) -> None:
        """Run the remaining epochs."""
        trainer, progress, epochs = self.trainer, self.progress, self.recipe.optim.epochs
        if trainer is None:
            return
        stderr.print(f"{len(trainer.clips)} training clips, {len(self.tests)} test clips, {epochs} epochs")
        compared = self._kept_in_memory()
        with progress_bar() as bar, self._scalars() as scalars:
            task = bar.add_task("training", total=epochs * trainer.steps_per_epoch, completed=self._steps())

            def after_step(loss: float) -> None:
                what = f"epoch {progress.epoch}/{epochs} loss {progress.loss:.2f} WAR {progress.war:.0f} %"
                bar.update(task, completed=self._steps(), description=what)
                if scalars is not None:
                    scalars.add(self._steps(), {"train/loss": loss})
                if time.perf_counter() - self.saved >= self.recipe.run.save_every_s:
                    self._save()

            while progress.epoch <= epochs:
                trainer.run_epoch(progress, after_step)
                entry = self._end_epoch(trainer, compared)
                if scalars is not None:
                    rates = {f"rate/{name}": rate for name, rate in entry["rates"].items()}
                    measured = {name: value for name, value in entry.items() if name.endswith(("uar", "war"))}
                    scalars.add(
                        self._steps(), rates | {name.replace("_", "/"): value for name, value in measured.items()}
                    )

    def finish(self) -> TrainingResult:
        """Score the chosen checkpoint on the test list, and write result and pictures. Only in the first process."""
        select, progress, names = self.select, self.progress, self.spec.prompts.class_names
        if self.trainer is None:
            save_checkpoint(self.output / LAST, self.model, self._provenance({"epoch": 0}))
        file = self.output / (BEST if self.compared is not None else LAST)
        checkpoint = load_checkpoint(file)
        best = progress.best
        # A run that is killed at the end of an epoch can leave a best.pt that its state does not contain.
        if select == "test" and best is not None and best["epoch"] == checkpoint.provenance.get("epoch"):
            with damage_named(self.output / STATE):
                score, self.tests.unreadable = stored_score(best["confusion"], names), dict(best["unreadable"])
        else:
            model = checkpoint.build_model().to(self.processes.device)
            tests = shown(self.tests, "testing", len(self.tests))
            score = evaluate(model, tests).score(names)
            self.tests.require_readable()
            save_checkpoint(file, model, {**checkpoint.provenance, **_measured("test", score)})
        self.tests.warn_about_unreadable()
        if self.compared is not None and self.compared is not self.tests:
            self.compared.warn_about_unreadable()
        result = TrainingResult(
            checkpoint=file,
            score=score,
            class_names=names,
            epoch=checkpoint.provenance["epoch"],
            selected_on=select,
            seconds=time.perf_counter() - self.start,
            history=tuple(progress.history),
            listed_clips=len(self.tests),
            unreadable=dict(self.tests.unreadable),
        )
        title = f"UAR {score.uar:.2f} %, WAR {score.war:.2f} % on {result.test_clips} test clips"
        chosen = {"last": "the last", "test": "chosen on this test list: optimistic"}.get(select, f"chosen by {select}")
        title += " (not trained)" if self.trainer is None else f" (epoch {result.epoch}, {chosen})"
        write_confusion_picture(self.output / CONFUSION, score.confusion, names, title)
        if progress.history:
            write_curves(self.output / CURVES, progress.history, title)
        write_json(self.output / RESULT, {"identity": self.identity, **result.to_dict()})
        (self.output / STATE).unlink(missing_ok=True)
        return result

    def _end_epoch(self, trainer: Trainer, compared: Iterable[tuple[Annotation, Clip]] | None) -> dict[str, Any]:
        """Score, write, and move on to the next epoch; the first process does it for all."""
        progress = self.progress
        entry: dict[str, Any] = {
            "epoch": progress.epoch,
            "loss": progress.loss,
            "train_war": progress.war,
            "rates": trainer.rates(progress.epoch),
        }
        entry = self.processes.from_first(lambda: self._scored(entry, trainer, compared))
        progress.history.append(entry)
        progress.epoch += 1
        progress.step = progress.hits = progress.seen = 0
        progress.loss_sum = 0.0
        self._save()
        return entry

    def _scored(
        self, entry: dict[str, Any], trainer: Trainer, compared: Iterable[tuple[Annotation, Clip]] | None
    ) -> dict[str, Any]:
        """Add the scores to an epoch's entry, if epochs are compared, and write the checkpoints."""
        best, chosen = self.progress.best, False
        if self.compared is not None and compared is not None:
            score = evaluate(trainer.outcome, compared).score(self.spec.prompts.class_names)
            self.compared.require_readable()
            entry |= _measured(self.select, score)
            chosen = best is None or score.war > best["war"]
            if chosen:
                self.progress.best = {
                    "epoch": entry["epoch"],
                    "war": score.war,
                    "confusion": score.confusion.tolist(),
                    "unreadable": dict(self.compared.unreadable),
                }
        # A run that is killed here repeats the end of the epoch and writes the same files.
        for name in (BEST, LAST) if chosen else (LAST,):
            save_checkpoint(self.output / name, trainer.outcome, self._provenance(entry))
        return entry

    def _save(self) -> None:
        if self.processes.is_first and self.trainer is not None:
            self.progress.seconds = time.perf_counter() - self.start
            save_state(self.output / STATE, self.identity, self.progress, self.trainer.tensors())
            self.saved = time.perf_counter()

    def _steps(self) -> int:
        """Return the number of steps since the start of the run."""
        assert self.trainer is not None  # noqa: S101 - only what trains counts steps
        return (self.progress.epoch - 1) * self.trainer.steps_per_epoch + self.progress.step

    def _kept_in_memory(self) -> Iterable[tuple[Annotation, Clip]] | None:
        if self.recipe.data.cache and self.compared is not None and self.processes.is_first:
            return list(self.compared)
        return self.compared

    @contextlib.contextmanager
    def _scalars(self) -> Iterator[Scalars | None]:
        if not (self.recipe.run.tensorboard and self.processes.is_first):
            yield None
            return
        scalars = Scalars(self.output / TENSORBOARD, self._steps() + 1)
        try:
            yield scalars
        finally:
            scalars.close()

    def _provenance(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the provenance of a checkpoint; ``entry`` is that of its epoch."""
        recipe = self.recipe
        return {
            "epoch": entry["epoch"],
            "seed": recipe.run.seed,
            "selected_on": self.select,
            "optimistic": self.select == "test",
            **{name: entry.get(name) for name in ("validation_uar", "validation_war", "test_uar", "test_war")},
            "train_loss": entry.get("loss"),
            FRAME_INTERVAL: self.frame_interval_s,
            "recipe": recipe.to_dict(),
            "dataset": _dataset_description(Path(recipe.data.root or ".")),
        }


def _measured(split: str, score: Score) -> dict[str, float]:
    return {f"{split}_uar": score.uar, f"{split}_war": score.war}


def _dataset_description(root: Path) -> dict[str, Any]:
    """Return what the data set says about itself (the drawn one does), and its path."""
    try:
        described = json.loads((root / DATASET).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        described = None
    return {"root": str(root), "description": described}
