"""Sampling of the 16 frames that the model sees (upstream file ``dataloader/video_dataloader.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import ClipError

Indices = npt.NDArray[np.int64]

T = TypeVar("T", bound=np.generic)


def sample_indices(n_frames: int, n_samples: int = 16) -> Indices:
    """Choose the frames of the test-time clip: the middle of each of ``n_samples`` equal parts.

    A clip of at most ``n_samples`` frames is taken whole, and its last frame is repeated.

    Args:
        n_frames: frames of the whole clip, at least 1.
        n_samples: frames wanted, at least 1.

    Returns:
        Indices int64 [n_samples], non-decreasing, in [0, n_frames).

    Raises:
        DferDeployError: ``n_frames`` or ``n_samples`` is below 1.
    """
    _check(n_frames, n_samples)
    if n_frames > n_samples:
        tick = n_frames / n_samples
        return np.array([int(tick / 2 + tick * k) for k in range(n_samples)], dtype=np.int64)
    return np.minimum(np.arange(n_samples, dtype=np.int64), n_frames - 1)


def padded(frames: Sequence[npt.NDArray[T]], n_samples: int = 16) -> npt.NDArray[T]:
    """Stack the test-time clip of frames, or of their features. Too few are padded by repeating the last.

    Args:
        frames: frames or features, at least one, all of one shape and dtype.
        n_samples: frames wanted, at least 1.

    Returns:
        [n_samples, …] of that shape and dtype.

    Raises:
        DferDeployError: there is no frame, or ``n_samples`` is below 1.
    """
    return np.stack([frames[index] for index in sample_indices(len(frames), n_samples).tolist()])


def training_indices(n_frames: int, rng: np.random.Generator, n_samples: int = 16) -> Indices:
    """Draw a training clip: a random frame of each of ``n_samples`` parts of ``n_frames // n_samples`` frames.

    The remaining frames at the end are never drawn, as upstream. For a clip of at most ``n_samples`` frames, the
    test-time clip is returned.

    Args:
        n_frames: frames of the whole clip, at least 1.
        rng: the source of randomness.
        n_samples: frames wanted, at least 1.

    Returns:
        Indices int64 [n_samples], non-decreasing, in [0, n_frames).

    Raises:
        DferDeployError: ``n_frames`` or ``n_samples`` is below 1.
    """
    _check(n_frames, n_samples)
    if n_frames <= n_samples:
        return sample_indices(n_frames, n_samples)
    part = n_frames // n_samples
    return np.arange(n_samples, dtype=np.int64) * part + rng.integers(part, size=n_samples)


def _check(n_frames: int, n_samples: int) -> None:
    if n_frames < 1 or n_samples < 1:
        raise ClipError(f"cannot take {n_samples} frames of a clip of {n_frames}, expected at least 1 of each")
