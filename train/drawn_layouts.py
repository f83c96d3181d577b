"""The layouts of the drawn data set: files like those of the real data sets, so that reading them can be tried.

``train.layouts`` names the sources of the formats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]
Layout = Literal["lists", "dfew", "ferv39k", "mafw"]
SPLITS: tuple[Split, ...] = ("train", "test")
LAYOUTS: tuple[Layout, ...] = ("lists", "dfew", "ferv39k", "mafw")

FOLDS = 5
"""Number of folds of DFEW and MAFW. Here they separate persons: nobody is in both lists of a fold."""

_DFEW_LABELS = {"happiness": 1, "sadness": 2, "neutral": 3, "anger": 4, "surprise": 5, "disgust": 6, "fear": 7}
_FERV39K_LABELS = {
    "happiness": "Happy",
    "sadness": "Sad",
    "neutral": "Neutral",
    "anger": "Angry",
    "surprise": "Surprise",
    "disgust": "Disgust",
    "fear": "Fear",
}
_FERV39K_SCENES = ("Action", "DailyLife", "Interview", "School")
"""Some of the 22 scenes. Here the scene of a person has no meaning."""


@dataclass(frozen=True)
class DrawnClip:
    """The properties of a clip that lists contain.

    Attributes:
        split: the list that contains it, if there are no folds.
        index: number of the clip in its split, from 0.
        number: number of the clip in the data set, from 1.
        person: number of the person in the split, from 0.
        identity: number of the person in the data set, from 0.
        class_name: name of its expression.
        label: index of its class.
    """

    split: Split
    index: int
    number: int
    person: int
    identity: int
    class_name: str
    label: int


def clip_folder(layout: Layout, clip: DrawnClip) -> str:
    """Return the folder of a clip's frames, relative to the data set."""
    if layout == "dfew":
        return f"Clip/clip_224x224/{clip.number:05d}"
    if layout == "ferv39k":
        return f"2_ClipsforFaceCrop/{_ferv39k_name(clip)}"
    if layout == "mafw":
        return f"data/faces/{clip.number:05d}"
    return f"frames/{clip.split}_{clip.index:05d}_person{clip.person:03d}_{clip.class_name}"


def lists_of(layout: Layout, clips: Iterable[tuple[DrawnClip, int]]) -> dict[str, str]:
    """Return the lists of a data set.

    Args:
        layout: the data set whose format is used.
        clips: the clips, each with its number of frames, which only the layout ``lists`` contains.

    Returns:
        The text of each list, by its path relative to the data set.
    """
    parts = list(clips)
    files = {}
    for split in SPLITS:
        if layout in ("lists", "ferv39k"):
            name = f"{split}.txt" if layout == "lists" else f"4_setups/All_scenes/{split}_All.csv"
            files[name] = "".join(_line(layout, clip, frames) for clip, frames in parts if clip.split == split)
            continue
        for fold in range(1, FOLDS + 1):
            lines = "".join(
                _line(layout, clip, frames)
                for clip, frames in parts
                if (clip.identity % FOLDS + 1 == fold) == (split == "test")
            )
            if layout == "dfew":
                files[f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv"] = f"video_name,label\n{lines}"
            else:
                files[f"Train & Test Set/single/no_caption/set_{fold}/{split}.txt"] = lines
    return files


def _line(layout: Layout, clip: DrawnClip, frames: int) -> str:
    if layout == "dfew":
        return f"{clip.number},{_DFEW_LABELS[clip.class_name]}\n"
    if layout == "ferv39k":
        return f"{_ferv39k_name(clip)} {_FERV39K_LABELS[clip.class_name]}\n"
    if layout == "mafw":
        return f"{clip.number:05d}.mp4 {clip.class_name}\n"
    return f"{clip_folder(layout, clip)} {frames} {clip.label}\n"


def _ferv39k_name(clip: DrawnClip) -> str:
    scene = _FERV39K_SCENES[clip.identity % len(_FERV39K_SCENES)]
    return f"{scene}/{_FERV39K_LABELS[clip.class_name]}/{clip.number:04d}"
