"""Synthetic clips: smooth colours and some noise, drifting over time, from a fixed seed."""

from __future__ import annotations

import math

import numpy as np

from dfer_deploy.clips.reading import Clip
from dfer_deploy.specs import MAX_FRAMES


def drawn_clips(count: int, image_size: int) -> Clip:
    """Draw clips for checks of arithmetic and for load tests. They do not show how well a model recognises expressions.

    Args:
        count: number of clips.
        image_size: S, the side of the frames in pixels.

    Returns:
        uint8 [count, 16, S, S, 3], the same on every machine.
    """
    rng = np.random.default_rng(20230904)
    y, x = np.mgrid[0:image_size, 0:image_size] / image_size * 2 * math.pi
    frames = []
    for _ in range(count):
        cycles, phase, drift = rng.uniform(0.3, 3.0, (2, 3)), rng.uniform(0, 6.3, 3), rng.uniform(-0.3, 0.3, 3)
        for time in range(MAX_FRAMES):
            waves = [np.sin(cycles[0, c] * x + cycles[1, c] * y + phase[c] + drift[c] * time) for c in range(3)]
            noise = rng.normal(0, 12, (image_size, image_size, 3))
            frames.append(np.clip(np.stack(waves, axis=-1) * 100 + 128 + noise, 0, 255).round().astype(np.uint8))
    return np.stack(frames).reshape(count, MAX_FRAMES, image_size, image_size, 3)
