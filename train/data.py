"""The clips of a training run: read once or again and again, sampled, varied and batched."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.reading import Clip, Sampler, clip_from_path, frame_paths
from dfer_deploy.clips.sampling import sample_indices, training_indices
from dfer_deploy.console import progress, warn
from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import MAX_FRAMES
from dfer_deploy.train.augmentation import cropped, random_crop, random_variation, varied
from dfer_deploy.train.recipe import AugmentRecipe

_BATCHES_AHEAD = 2

_UNREADABLE = 0.05
"""Largest share of training clips that may be left out, as in ``verify.Limits``."""


class TrainingClips:
    """Labelled clips that differ in every epoch: other frames, other crops, mirrored or not.

    What a clip looks like depends only on the seed, the epoch and its place in the list (and, in the balanced order, on
    how often it has been shown in this epoch), whichever thread, process or step prepares it.

    Attributes:
        annotations: all clips of the list.
        unreadable: by name, the clips that cannot be read, with the reason. They are left out, each is warned about
            once, and more than 5 % of them end the training.
    """

    def __init__(
        self,
        annotations: list[Annotation],
        image_size: int,
        augment: AugmentRecipe,
        seed: int,
        decode_size: int | None = None,
        cache: bool = False,
        balanced: bool = False,
    ) -> None:
        """Looks whether the clips are there; with ``cache`` all frames are decoded now.

        Args:
            annotations: the clips.
            image_size: S, the side of the model's input in pixels.
            augment: the random changes.
            seed: of everything random.
            decode_size: side of the frames before the crop; None takes S.
            cache: keep all decoded frames in memory.
            balanced: show every class equally often in an epoch, which stays as long as it is: clips of small classes
                come several times, each time varied anew, and of large ones another part in every epoch.

        Raises:
            DferDeployError: more than 5 % of the clips are not there or, with ``cache``, cannot be read.
        """
        self.annotations = annotations
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.decode_size = decode_size or image_size
        self.balanced = balanced
        self.unreadable: dict[str, str] = {}
        self._frames: list[Clip | None] | None = None
        with ThreadPoolExecutor(thread_name_prefix="training-clips") as pool:
            if cache:
                read = pool.map(self._decoded, annotations)
                decoded = list(progress(read, "reading clips", len(annotations)))
                self._frames = [None if isinstance(clip, DferDeployError) else clip for clip in decoded]
                problems = [clip if isinstance(clip, DferDeployError) else None for clip in decoded]
            else:
                checked = pool.map(self._problem, annotations)
                problems = list(progress(checked, "looking at clips", len(annotations)))
        self._indices = [index for index, problem in enumerate(problems) if problem is None]
        self._leave_out({a.name: str(p) for a, p in zip(annotations, problems, strict=True) if p is not None})

    def __len__(self) -> int:
        """Clips in an epoch."""
        return len(self._indices)

    def clip(self, index: int, epoch: int, frames_per_clip: int = MAX_FRAMES, repetition: int = 0) -> Clip:
        """uint8 [T, S, S, 3] of the clip at ``index`` of the list as it looks in ``epoch``, T = ``frames_per_clip``.

        Raises:
            DferDeployError: it cannot be read.
        """
        rng = np.random.default_rng([self.seed, epoch, index, repetition])
        frames = self._sampled(index, lambda count: training_indices(count, rng, frames_per_clip))
        variation = random_variation(self.decode_size, self.decode_size, self.augment, rng)
        return varied(frames, variation, self.image_size)

    def batches(
        self,
        epoch: int,
        batch_size: int,
        frames_per_clip: int = MAX_FRAMES,
        start_step: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All clips in the random order of an epoch, prepared ahead in threads.

        Args:
            epoch: which order, and which look of the clips.
            batch_size: clips in a joint batch.
            frames_per_clip: T.
            start_step: so many first batches are passed over without reading them.
            shard: (rank, world): every joint batch is cut into ``world`` parts that follow each other in its order and
                differ by at most one clip, and this is the part of ``rank``.

        Yields:
            Frames, uint8 [B, T, S, S, 3], and labels, int64 [B]. The last batch may be smaller, and a clip that turns
            out to be unreadable is missing from its batch; so a part may even be empty, B = 0, because every rank gets
            the same number of batches.

        Raises:
            DferDeployError: more than 5 % of the clips cannot be read.
        """
        rank, world = shard
        order = self._order(epoch)
        pending: deque[list[tuple[int, Future[Clip | DferDeployError]]]] = deque()
        with ThreadPoolExecutor(thread_name_prefix="training-clips") as pool:
            try:
                for start in range(start_step * batch_size, len(order), batch_size):
                    joint = order[start : start + batch_size]
                    chosen = joint[len(joint) * rank // world : len(joint) * (rank + 1) // world]
                    pending.append(
                        [
                            (index, pool.submit(self._varied, index, epoch, frames_per_clip, nth))
                            for index, nth in chosen
                        ]
                    )
                    if len(pending) > _BATCHES_AHEAD:
                        yield self._batch(pending.popleft(), frames_per_clip)
                while pending:
                    yield self._batch(pending.popleft(), frames_per_clip)
            finally:
                # Whoever stops early (Ctrl-C, an unreadable clip) does not wait for clips that nobody wants.
                pool.shutdown(wait=True, cancel_futures=True)

    def example_frames(self, count: int) -> Clip:
        """About ``count`` unchanged frames of clips from all over the list, uint8 [N, S, S, 3]."""
        per_clip = 4
        chosen = np.linspace(0, len(self) - 1, min(len(self), max(1, count // per_clip))).round().astype(int)
        return np.concatenate([self.unchanged(self._indices[position], per_clip) for position in chosen.tolist()])

    def unchanged(self, index: int, frames_per_clip: int = MAX_FRAMES) -> Clip:
        """uint8 [T, S, S, 3] of the clip at ``index`` of the list as it is, T frames spread over all of it."""
        whole = AugmentRecipe(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
        crop = random_crop(self.decode_size, self.decode_size, whole, np.random.default_rng(0))
        frames = self._sampled(index, lambda count: sample_indices(count, frames_per_clip))
        return cropped(frames, crop, self.image_size)

    def _order(self, epoch: int) -> list[tuple[int, int]]:
        """Places in the list, each with how often it has come before."""
        rng = np.random.default_rng([self.seed, epoch])
        if not self.balanced:
            return [(self._indices[position], 0) for position in rng.permutation(len(self)).tolist()]
        classes: dict[int, list[int]] = defaultdict(list)
        for index in self._indices:
            classes[self.annotations[index].label].append(index)
        share, rest = divmod(len(self), len(classes))
        order: list[tuple[int, int]] = []
        for place, label in enumerate(rng.permutation(sorted(classes)).tolist()):
            members = classes[label]
            rounds, left = divmod(share + (place < rest), len(members))
            order += [(index, nth) for nth in range(rounds) for index in members]
            order += [(members[position], rounds) for position in rng.permutation(len(members))[:left].tolist()]
        return [order[position] for position in rng.permutation(len(order)).tolist()]

    def _varied(self, index: int, epoch: int, frames_per_clip: int, repetition: int) -> Clip | DferDeployError:
        try:
            return self.clip(index, epoch, frames_per_clip, repetition)
        except DferDeployError as error:
            return error

    def _batch(
        self, clips: list[tuple[int, Future[Clip | DferDeployError]]], frames_per_clip: int
    ) -> tuple[Tensor, Tensor]:
        frames = [np.empty((0, frames_per_clip, self.image_size, self.image_size, 3), np.uint8)]
        labels: list[int] = []
        for index, future in clips:
            clip, annotation = future.result(), self.annotations[index]
            if isinstance(clip, DferDeployError):
                self._leave_out({annotation.name: str(clip)})
            else:
                frames.append(clip[np.newaxis])
                labels.append(annotation.label)
        return torch.from_numpy(np.concatenate(frames)), torch.tensor(labels, dtype=torch.int64)

    def _sampled(self, index: int, sampler: Sampler) -> Clip:
        if self._frames is None:
            return clip_from_path(self.annotations[index].path, self.decode_size, sampler)
        frames = self._frames[index]
        if frames is None:
            raise DferDeployError(self.unreadable[self.annotations[index].name])
        return frames[sampler(len(frames))]

    def _leave_out(self, problems: dict[str, str]) -> None:
        """Warns about the clips that were not known to be unreadable, and ends the training where they are too many."""
        new = {name: reason for name, reason in problems.items() if name not in self.unreadable}
        self.unreadable |= new
        if len(self.unreadable) > _UNREADABLE * len(self.annotations):
            raise DferDeployError(
                f"{len(self.unreadable)} of {len(self.annotations)} training clips cannot be read, at most "
                f"{_UNREADABLE:.0%} is accepted; the first: {next(iter(self.unreadable.values()))}"
            )
        if new:
            lines = "".join(f"\n  {name}: {reason}" for name, reason in new.items())
            warn(f"{len(new)} of {len(self.annotations)} training clips cannot be read and are left out:{lines}")

    def _problem(self, annotation: Annotation) -> DferDeployError | None:
        """Why a clip cannot be read, as far as that can be told without decoding it."""
        try:
            if annotation.path.is_file() or frame_paths(annotation.path):
                return None
        except OSError:
            pass  # reading it says in a sentence what is the matter
        clip = self._decoded(annotation)
        return clip if isinstance(clip, DferDeployError) else None

    def _decoded(self, annotation: Annotation) -> Clip | DferDeployError:
        """All frames, or why there are none."""
        try:
            return clip_from_path(annotation.path, self.decode_size, np.arange)
        except DferDeployError as error:
            return error
