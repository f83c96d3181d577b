"""The clips of a training run: read once or again and again, sampled, cropped and batched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.reading import Clip, Sampler, clip_from_path
from dfer_deploy.clips.sampling import sample_indices, training_indices
from dfer_deploy.console import progress
from dfer_deploy.specs import MAX_FRAMES
from dfer_deploy.train.augmentation import cropped, random_crop
from dfer_deploy.train.recipe import AugmentRecipe

_BATCHES_AHEAD = 2


class TrainingClips:
    """Labelled clips that differ in every epoch: other frames, other crops, mirrored or not.

    What a clip looks like depends only on the seed, the epoch and its place in the list.
    """

    def __init__(
        self,
        annotations: list[Annotation],
        image_size: int,
        augment: AugmentRecipe,
        seed: int,
        decode_size: int | None = None,
        cache: bool = False,
    ) -> None:
        """Describes the clips; with ``cache`` all frames are decoded now.

        Args:
            annotations: the clips.
            image_size: S, the side of the model's input in pixels.
            augment: the random changes.
            seed: of everything random.
            decode_size: side of the frames before the crop; None takes S.
            cache: keep all decoded frames in memory.

        Raises:
            DferDeployError: with ``cache``, a clip cannot be read; otherwise this shows when it is needed.
        """
        self.annotations = annotations
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.decode_size = decode_size or image_size
        self._frames: list[Clip] | None = self._decode_all() if cache else None

    def __len__(self) -> int:
        return len(self.annotations)

    def clip(self, index: int, epoch: int, frames_per_clip: int = MAX_FRAMES) -> Clip:
        """uint8 [T, S, S, 3] of the clip at ``index`` as it looks in ``epoch``, T = ``frames_per_clip``."""
        rng = np.random.default_rng([self.seed, epoch, index])
        frames = self._sampled(index, lambda count: training_indices(count, rng, frames_per_clip))
        crop = random_crop(self.decode_size, self.decode_size, self.augment, rng)
        return cropped(frames, crop, self.image_size)

    def batches(
        self, epoch: int, batch_size: int, frames_per_clip: int = MAX_FRAMES
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All clips in the random order of an epoch, prepared ahead in threads.

        Yields:
            Frames, uint8 [B, T, S, S, 3], and labels, int64 [B]; the last batch may be smaller.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self)).tolist()
        pending: deque[tuple[list[int], list[Future[Clip]]]] = deque()
        with ThreadPoolExecutor(thread_name_prefix="training-clips") as pool:
            try:
                for start in range(0, len(order), batch_size):
                    chosen = order[start : start + batch_size]
                    pending.append(
                        (chosen, [pool.submit(self.clip, index, epoch, frames_per_clip) for index in chosen])
                    )
                    if len(pending) > _BATCHES_AHEAD:
                        yield self._batch(*pending.popleft())
                while pending:
                    yield self._batch(*pending.popleft())
            finally:
                # Whoever stops early (Ctrl-C, an unreadable clip) does not wait for clips that nobody wants.
                pool.shutdown(wait=True, cancel_futures=True)

    def example_frames(self, count: int) -> Clip:
        """About ``count`` unchanged frames of clips from all over the list, uint8 [N, S, S, 3]."""
        per_clip = 4
        chosen = np.linspace(0, len(self) - 1, min(len(self), max(1, count // per_clip))).round().astype(int)
        full = random_crop(
            self.decode_size,
            self.decode_size,
            AugmentRecipe(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0),
            np.random.default_rng(0),
        )
        clips = [self._sampled(int(index), lambda frames: sample_indices(frames, per_clip)) for index in chosen]
        return np.concatenate([cropped(clip, full, self.image_size) for clip in clips])

    def _batch(self, chosen: list[int], clips: list[Future[Clip]]) -> tuple[Tensor, Tensor]:
        frames = torch.from_numpy(np.stack([clip.result() for clip in clips]))
        return frames, torch.tensor([self.annotations[index].label for index in chosen])

    def _sampled(self, index: int, sampler: Sampler) -> Clip:
        if self._frames is None:
            return clip_from_path(self.annotations[index].path, self.decode_size, sampler)
        frames = self._frames[index]
        return frames[sampler(len(frames))]

    def _decode_all(self) -> list[Clip]:
        def decode(path: Path) -> Clip:
            return clip_from_path(path, self.decode_size, np.arange)

        with ThreadPoolExecutor() as pool:
            clips = pool.map(decode, [annotation.path for annotation in self.annotations])
            return list(progress(clips, "reading clips", len(self.annotations)))
