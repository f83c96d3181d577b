"""The clips of a training run: read, sampled, changed at random and batched."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import MAX_UNREADABLE, is_present
from dfer_deploy.clips.reading import Clip, Sampler, clip_from_path, frame_paths
from dfer_deploy.clips.sampling import Indices, sample_indices, training_indices
from dfer_deploy.clips.timed import check_interval
from dfer_deploy.console import progress, warn
from dfer_deploy.errors import DferDeployError, TrainingError
from dfer_deploy.specs import MAX_FRAMES
from dfer_deploy.train.augmentation import cropped, random_crop, random_variation, varied
from dfer_deploy.train.recipe import AugmentRecipe

_BATCHES_AHEAD = 2
"""Number of batches that are prepared in advance."""

T = TypeVar("T")


class TrainingClips:
    """Labelled clips that differ in every epoch by their frames, crops and mirroring.

    A clip's appearance depends only on the seed, the epoch and its index in the list; in the balanced order, also on
    how often it has been shown in this epoch. It does not depend on the thread, process or step that prepares it. The
    order of an epoch includes all listed clips. A clip that cannot be read is missing from its batch and does not move
    any other.

    Attributes:
        annotations: all clips of the list.
        unreadable: for each clip that cannot be read, its name and the reason. Such a clip is omitted with one warning.
            If more than 5 % of the clips are unreadable, training ends.
        found: unreadable clips that batches had to omit and that were not yet passed to ``leave_out``. Several
            processes find different ones, and must end together.
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
        """Check that the clips exist. With ``cache``, all frames are decoded now, which changes nothing else.

        Args:
            annotations: the clips.
            image_size: S, the side of the model's input in pixels.
            augment: the random changes.
            seed: seed of everything random.
            decode_size: side of the frames before the crop in pixels; None for S.
            cache: keep all decoded frames in memory.
            balanced: show every class equally often in an epoch of unchanged length. Clips of small classes are shown
                several times with different changes; large classes show a different part in every epoch.

        Raises:
            DferDeployError: more than 5 % of the clips do not exist.
        """
        self.annotations = annotations
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.decode_size = decode_size or image_size
        self.balanced = balanced
        self.unreadable: dict[str, str] = {}
        self.found: dict[str, str] = {}
        self._frames: list[Clip | None] = [None] * len(annotations)
        with ThreadPoolExecutor(thread_name_prefix="training-clips") as pool:
            checked = pool.map(self._problem, annotations)
            problems = list(progress(checked, "looking at clips", len(annotations)))
            self.leave_out({a.name: str(p) for a, p in zip(annotations, problems, strict=True) if p is not None})
            if cache:
                read = progress(pool.map(self._decoded, annotations), "reading clips", len(annotations))
                # A clip that cannot be decoded completely is read in its batch, as without the cache.
                self._frames = [None if isinstance(clip, DferDeployError) else clip for clip in read]

    def __len__(self) -> int:
        """Return the number of clips in an epoch, including those that cannot be read."""
        return len(self.annotations)

    def clip(self, index: int, epoch: int, frames_per_clip: int = MAX_FRAMES, repetition: int = 0) -> Clip:
        """Return the clip at an index of the list as it looks in an epoch, uint8 [T, S, S, 3], T = ``frames_per_clip``.

        Raises:
            DferDeployError: the clip cannot be read.
        """
        rng = np.random.default_rng([self.seed, epoch, index, repetition])
        start = rng.bit_generator.state

        def sampler(count: int) -> Indices:
            rng.bit_generator.state = start  # a video that states a wrong number of frames calls this twice
            return training_indices(count, rng, frames_per_clip)

        frames = self._sampled(index, sampler)
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
        """Yield all clips in the random order of an epoch, prepared in advance by threads.

        Args:
            epoch: number of the epoch, which decides the order and the appearance of the clips.
            batch_size: number of clips in a joint batch.
            frames_per_clip: T, the number of frames of a clip.
            start_step: number of first batches that are skipped without reading them.
            shard: (rank, world). Every joint batch is cut into ``world`` consecutive parts that differ by at most one
                clip, and this process gets the part of ``rank``.

        Yields:
            Frames, uint8 [B, T, S, S, 3], and labels, int64 [B]. The last batch may be smaller. A clip that turns out
            to be unreadable is missing from its batch and is added to ``found``. A part may be empty (B = 0), because
            every rank gets the same number of batches.
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
                # After an early end (Ctrl-C, an unreadable clip), do not wait for clips that are no longer needed.
                pool.shutdown(wait=True, cancel_futures=True)

    def example_frames(self, count: int) -> Clip:
        """Return about ``count`` unchanged frames of clips from all over the list, uint8 [N, S, S, 3]."""
        per_clip, total = 4, len(self)
        chosen = np.linspace(0, total - 1, min(total, max(1, count // per_clip))).round().astype(int)
        examples = (
            self.first_readable(
                ((start + offset) % total for offset in range(total)), lambda index: self.unchanged(index, per_clip)
            )
            for start in chosen.tolist()
        )
        return np.concatenate([frames for frames in examples if frames is not None])

    def first_readable(self, indices: Iterable[int], read: Callable[[int], T]) -> T | None:
        """Return the result of ``read`` for the first of some indices whose clip can be read; omit the others.

        Raises:
            DferDeployError: more than 5 % of the clips cannot be read.
        """
        for index in indices:
            try:
                return read(index)
            except DferDeployError as error:  # noqa: PERF203 - decoding a clip takes far longer
                self.leave_out({self.annotations[index].name: str(error)})
        return None

    def unchanged(self, index: int, frames_per_clip: int = MAX_FRAMES) -> Clip:
        """Return the clip at an index of the list unchanged, uint8 [T, S, S, 3], its T frames spread over all of it."""
        whole = AugmentRecipe(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
        crop = random_crop(self.decode_size, self.decode_size, whole, np.random.default_rng(0))
        frames = self._sampled(index, lambda count: sample_indices(count, frames_per_clip))
        return cropped(frames, crop, self.image_size)

    def _order(self, epoch: int) -> list[tuple[int, int]]:
        """Return indices in the list, each with how often it has occurred before."""
        rng = np.random.default_rng([self.seed, epoch])
        if not self.balanced:
            return [(index, 0) for index in rng.permutation(len(self)).tolist()]
        classes: dict[int, list[int]] = defaultdict(list)
        for index, annotation in enumerate(self.annotations):
            classes[annotation.label].append(index)
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
                if annotation.name not in self.unreadable:
                    self.found[annotation.name] = str(clip)
            else:
                frames.append(clip[np.newaxis])
                labels.append(annotation.label)
        return torch.from_numpy(np.concatenate(frames)), torch.tensor(labels, dtype=torch.int64)

    def _sampled(self, index: int, sampler: Sampler) -> Clip:
        frames = self._frames[index]
        if frames is None:
            return clip_from_path(self.annotations[index].path, self.decode_size, sampler)
        return frames[sampler(len(frames))]

    def leave_out(self, problems: Mapping[str, str]) -> None:
        """Warn about the clips that were not known to be unreadable, and omit them.

        Args:
            problems: for each clip that cannot be read, its name and the reason; the same in every process.

        Raises:
            DferDeployError: more than 5 % of the clips are unreadable now.
        """
        new = {name: reason for name, reason in problems.items() if name not in self.unreadable}
        self.unreadable |= new
        self.found = {}
        if len(self.unreadable) > MAX_UNREADABLE * len(self.annotations):
            raise TrainingError(
                f"{len(self.unreadable)} of {len(self.annotations)} training clips cannot be read, at most "
                f"{MAX_UNREADABLE:.0%} is accepted; the first: {next(iter(self.unreadable.values()))}"
            )
        if new:
            lines = "".join(f"\n  {name}: {reason}" for name, reason in new.items())
            warn(f"{len(new)} of {len(self.annotations)} training clips cannot be read and are left out:{lines}")

    def _problem(self, annotation: Annotation) -> DferDeployError | None:
        """Return why a clip cannot be read, as far as that is known without decoding it; None if it can."""
        if is_present(annotation.path):
            return None
        clip = self._decoded(annotation)
        return clip if isinstance(clip, DferDeployError) else None

    def _decoded(self, annotation: Annotation) -> Clip | DferDeployError:
        """Return all frames of a clip, or why there are none."""
        try:
            return clip_from_path(annotation.path, self.decode_size, np.arange)
        except DferDeployError as error:
            return error


def frame_interval_s(annotations: Sequence[Annotation], frames_per_s: float) -> float:
    """Return the seconds between two of the 16 frames that the model sees of a clip of median length.

    Longer clips are thinned to 16 frames. Shorter clips are used frame by frame.

    Args:
        annotations: the clips, at least one. Frames in folders are counted; for videos and absent folders the list's
            number is used.
        frames_per_s: frames per second of the clips.

    Raises:
        DferDeployError: videos cannot be cut at such an interval.
    """
    interval_s = max(1.0, statistics.median(map(_frames_of, annotations)) / MAX_FRAMES) / frames_per_s
    try:
        check_interval(interval_s)
    except DferDeployError as error:
        raise TrainingError(f"{error}; correct data.frames_per_s, which is {frames_per_s:g}") from error
    return interval_s


def _frames_of(annotation: Annotation) -> int:
    try:
        return len(frame_paths(annotation.path)) or annotation.listed_frames
    except OSError:
        return annotation.listed_frames
