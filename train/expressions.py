"""The movements of a drawn face: action units, the seven classes made of them, and their course over a clip.

The action units and their combinations follow the Facial Action Coding System (Ekman, Friesen & Hager 2002) and
EMFACS, as far as a cartoon can show them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CLASS_NAMES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
"""The class order of DFEW and FERV39k."""


@dataclass(frozen=True)
class ActionUnits:
    """Intensities of facial movements: 0 is at rest, 1 is strong; a little beyond both is allowed.

    The numbers in the comments are those of the Facial Action Coding System.
    """

    inner_brow_raise: float = 0.0  # 1
    outer_brow_raise: float = 0.0  # 2
    brow_lower: float = 0.0  # 4
    upper_lid_raise: float = 0.0  # 5
    cheek_raise: float = 0.0  # 6
    lid_tighten: float = 0.0  # 7
    nose_wrinkle: float = 0.0  # 9
    upper_lip_raise: float = 0.0  # 10
    corner_pull: float = 0.0  # 12
    corner_depress: float = 0.0  # 15
    chin_raise: float = 0.0  # 17
    lip_stretch: float = 0.0  # 20
    lip_press: float = 0.0  # 23, 24
    lips_part: float = 0.0  # 25
    jaw_drop: float = 0.0  # 26, 27
    blink: float = 0.0  # 45


_NAMES = tuple(field.name for field in fields(ActionUnits))
_INDEX = {name: index for index, name in enumerate(_NAMES)}

_VARIANTS: dict[str, tuple[dict[str, float], ...]] = {
    "happiness": (
        {"cheek_raise": 0.9, "corner_pull": 1.0, "lips_part": 0.9},
        {"cheek_raise": 0.7, "corner_pull": 1.0},
        {"cheek_raise": 1.0, "corner_pull": 1.0, "lips_part": 0.8, "jaw_drop": 0.45},
    ),
    "sadness": (
        {"inner_brow_raise": 1.1, "brow_lower": 0.25, "corner_depress": 1.1, "chin_raise": 0.4, "blink": 0.35},
        {"inner_brow_raise": 1.0, "brow_lower": 0.2, "corner_depress": 0.9, "chin_raise": 0.8, "blink": 0.3},
    ),
    "neutral": ({},),
    "anger": (
        {"brow_lower": 1.0, "upper_lid_raise": 0.3, "lid_tighten": 0.7, "lip_press": 1.0},
        {"brow_lower": 1.0, "lid_tighten": 0.6, "lips_part": 0.8, "lip_stretch": 0.2, "upper_lip_raise": 0.25},
    ),
    "surprise": (
        {"inner_brow_raise": 0.9, "outer_brow_raise": 1.0, "upper_lid_raise": 0.8, "jaw_drop": 1.1},
        {"inner_brow_raise": 1.0, "outer_brow_raise": 1.0, "upper_lid_raise": 0.9, "jaw_drop": 0.7},
    ),
    "disgust": (
        {"nose_wrinkle": 1.0, "upper_lip_raise": 1.0, "brow_lower": 0.3, "lid_tighten": 0.5, "corner_depress": 0.4},
        {"nose_wrinkle": 0.9, "upper_lip_raise": 0.8, "chin_raise": 0.6, "corner_depress": 0.6, "cheek_raise": 0.4},
    ),
    "fear": (
        {
            "inner_brow_raise": 1.0,
            "outer_brow_raise": 0.3,
            "brow_lower": 0.5,
            "upper_lid_raise": 1.0,
            "lip_stretch": 1.0,
            "lips_part": 0.7,
        },
        {
            "inner_brow_raise": 1.0,
            "outer_brow_raise": 0.4,
            "brow_lower": 0.5,
            "upper_lid_raise": 1.0,
            "lip_stretch": 0.9,
            "jaw_drop": 0.4,
        },
    ),
}


def movement(class_name: str, frames: int, rng: np.random.Generator) -> list[ActionUnits]:
    """Return the action units of every frame of one clip.

    An expression rises from a near-neutral face, stays for a while and falls again. Times and intensities are random,
    so that many single frames fit several classes. Every clip has blinks and small movements, and many have speech; a
    neutral clip has nothing else.

    Args:
        class_name: one of CLASS_NAMES.
        frames: number of frames, at least 2.
        rng: random generator of the clip.
    """
    time = np.linspace(0.0, 1.0, frames)
    units = np.zeros((frames, len(_NAMES)))
    variants = _VARIANTS[class_name]
    strength = rng.uniform(0.7, 1.1)
    onset = rng.uniform(0.05, 0.25)
    apex_start = onset + rng.uniform(0.08, 0.2)
    apex_end = rng.uniform(0.6, 0.85)
    offset = rng.uniform(apex_end + 0.07, 0.97)
    for name, intensity in variants[int(rng.integers(len(variants)))].items():
        # Muscles do not move in step: each has its own lag and intensity.
        lag = rng.normal(0.0, 0.02)
        course = _smooth_step(time, onset + lag, apex_start + lag) - _smooth_step(time, apex_end + lag, offset + lag)
        units[:, _INDEX[name]] += intensity * strength * rng.uniform(0.75, 1.15) * course
    if rng.random() < (0.6 if class_name == "neutral" else 0.25):
        _add_speech(units, time, rng)
    _add_small_movements(units, time, rng)
    _add_blinks(units, rng)
    return [ActionUnits(*(float(value) for value in row)) for row in np.clip(units, -0.15, 1.25)]


def _add_speech(units: Array, time: Array, rng: np.random.Generator) -> None:
    start = rng.uniform(0.0, 0.4)
    talking = _smooth_step(time, start, start + 0.1) - _smooth_step(time, start + 0.4, start + 0.5)
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * (time * rng.uniform(5.0, 9.0) + rng.random()))
    units[:, _INDEX["lips_part"]] += rng.uniform(0.2, 0.5) * talking * syllables
    units[:, _INDEX["jaw_drop"]] += rng.uniform(0.05, 0.3) * talking * syllables


def _add_small_movements(units: Array, time: Array, rng: np.random.Generator) -> None:
    count = units.shape[1]
    amplitude = np.abs(rng.normal(0.0, 0.07, count))
    amplitude[_INDEX["blink"]] = 0.0
    units += amplitude * np.sin(2 * np.pi * (time[:, None] * rng.uniform(0.3, 1.5, count) + rng.random(count)))
    # A brief flash of one movement from another class, too weak and too short to decide.
    if rng.random() < 0.5:
        flash = rng.uniform(0.1, 0.9)
        width = rng.uniform(0.03, 0.08)
        units[:, rng.integers(count - 1)] += rng.uniform(0.2, 0.5) * np.exp(-(((time - flash) / width) ** 2))


def _add_blinks(units: Array, rng: np.random.Generator) -> None:
    frames = len(units)
    for _ in range(int(rng.integers(0, 3))):
        middle = int(rng.integers(0, frames))
        for frame, closed in ((middle - 1, 0.6), (middle, 1.0), (middle + 1, 0.5)):
            if 0 <= frame < frames:
                units[frame, _INDEX["blink"]] = max(units[frame, _INDEX["blink"]], closed)


def _smooth_step(time: Array, start: float, end: float) -> Array:
    position = np.clip((time - start) / (end - start), 0.0, 1.0)
    return np.asarray(position * position * (3.0 - 2.0 * position))
