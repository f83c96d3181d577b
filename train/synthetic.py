"""The drawn data set: folders of frames and lists, in the format of the reference implementation or a real data set.

It exists so that training, export, serving and verification can be shown and tested without a real data set. Drawn
faces are not evidence about real ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dfer_deploy.console import progress, stderr
from dfer_deploy.errors import TrainingError
from dfer_deploy.files import write_json
from dfer_deploy.machine.cgroups import usable_cores
from dfer_deploy.machine.children import end_with_parent
from dfer_deploy.machine.folders import atomic_folder, locked_folder
from dfer_deploy.train.drawn_faces import SUPERSAMPLING, Identity, draw_face, random_identity
from dfer_deploy.train.drawn_layouts import FOLDS, LAYOUTS, SPLITS, DrawnClip, Layout, Split, clip_folder, lists_of
from dfer_deploy.train.expressions import CLASS_NAMES, movement
from dfer_deploy.train.pen import Pose

NOTE = (
    "These are drawn faces for demonstrations and tests; "
    "nothing measured on them is evidence about real faces or real data sets."
)


@dataclass(frozen=True)
class SyntheticSpec:
    """The settings of a drawn data set; with the seed they determine every pixel.

    Attributes:
        clips_per_class_train: number of training clips of each of the seven classes.
        clips_per_class_test: number of test clips of each class.
        identities_train: number of persons in the training clips; each of them shows every class.
        identities_test: number of persons in the test clips; none of them is in the training clips.
        image_size: side of the frames in pixels.
        min_frames: smallest number of frames of a clip. Below 16, some clips repeat their last frame for the model.
        max_frames: largest number of frames of a clip.
        seed: seed, 0 or more.
        layout: format of the files: ``lists`` is the reference implementation's. DFEW's and MAFW's have five folds,
            made of the persons of both splits together. Of MAFW's eleven classes seven are drawn. The pixels are the
            same in all.
    """

    clips_per_class_train: int = 240
    clips_per_class_test: int = 90
    identities_train: int = 120
    identities_test: int = 90
    image_size: int = 96
    min_frames: int = 10
    max_frames: int = 24
    seed: int = 0
    layout: Layout = "lists"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise TrainingError(f"layout is {self.layout!r}, expected one of {', '.join(LAYOUTS)}")
        for name, least in (
            ("clips_per_class_train", 1),
            ("clips_per_class_test", 1),
            ("identities_train", 1),
            ("identities_test", 1),
            ("image_size", 16),
            ("min_frames", 2),
            ("max_frames", self.min_frames),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise TrainingError(f"{name} is {value}, expected at least {least}; choose a larger number")
        persons = sum(self.persons(split) for split in SPLITS)
        if self.layout in ("dfew", "mafw") and persons < FOLDS:
            raise TrainingError(
                f"{persons} persons cannot be in {FOLDS} folds, as {self.layout} has; draw more clips of each class"
            )

    def clips_per_class(self, split: Split) -> int:
        return self.clips_per_class_train if split == "train" else self.clips_per_class_test

    def identities(self, split: Split) -> int:
        return self.identities_train if split == "train" else self.identities_test

    def persons(self, split: Split) -> int:
        """Return the number of identities with at least one clip in a split."""
        return min(self.identities(split), self.clips_per_class(split))


@dataclass(frozen=True)
class _Clip:
    """One clip to draw. Its place in the data set decides its class, its person and its random numbers."""

    spec: SyntheticSpec
    split: Split
    index: int

    @property
    def label(self) -> int:
        return self.index % len(CLASS_NAMES)

    @property
    def person(self) -> int:
        return self.index // len(CLASS_NAMES) % self.spec.identities(self.split)

    @property
    def listed(self) -> DrawnClip:
        """Return the properties of the clip for the lists."""
        clips_before, persons_before = (
            (0, 0) if self.split == "train" else (_size(self.spec, "train"), self.spec.persons("train"))
        )
        return DrawnClip(
            split=self.split,
            index=self.index,
            number=clips_before + self.index + 1,
            person=self.person,
            identity=persons_before + self.person,
            class_name=CLASS_NAMES[self.label],
            label=self.label,
        )

    @property
    def folder(self) -> str:
        return clip_folder(self.spec.layout, self.listed)

    def generator(self) -> np.random.Generator:
        # Each clip has its own generator, so the bytes do not depend on the process that draws it, or when.
        return np.random.default_rng([self.spec.seed, SPLITS.index(self.split), self.index])

    def identity(self) -> Identity:
        # The fourth number separates this random stream from the clips', which have the equivalent of a 0 there.
        return random_identity(np.random.default_rng([self.spec.seed, SPLITS.index(self.split), self.person, 1]))


def write_synthetic_dataset(root: Path, spec: SyntheticSpec, workers: int | None = None) -> None:
    """Write frame folders, lists and ``<root>/dataset.json``.

    In the layout ``lists``: ``<root>/frames/<clip>/00001.jpg…``, ``<root>/train.txt`` and ``<root>/test.txt``, with
    lines ``<folder relative to the list's folder> <number of frames> <class index>``. The folder appears completely or
    not at all. A folder that contains the same data set already is left unchanged, with a message.

    Args:
        root: the folder to create.
        spec: what to draw.
        workers: number of processes; None for one for each core; 1 draws in this process. The bytes are the same.

    Raises:
        DferDeployError: ``root`` contains something else, or cannot be written.
    """
    description = _description(spec)
    with locked_folder(root, make_parents=True):  # another process that draws here is waited for
        if root.exists():
            if _description_of(root) != description:
                raise TrainingError(
                    f"{root} exists and does not hold the requested data set; choose another folder or remove it first"
                )
            stderr.print(f"{root} holds this data set already; nothing to draw")
            return
        with atomic_folder(root) as folder:
            clips = [_Clip(spec, split, index) for split in SPLITS for index in range(_size(spec, split))]
            counts = list(progress(_draw_all(folder, clips, workers), "drawing clips", len(clips)))
            listed = [(clip.listed, frames) for clip, frames in zip(clips, counts, strict=True)]
            for name, text in lists_of(spec.layout, listed).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8")
            write_json(folder / "dataset.json", description)


def contact_sheet(root: Path, columns: int = 9, tile: int = 96) -> Image.Image:
    """Draw a contact sheet: one test clip of every class as a row, its frames from left to right in time.

    Args:
        root: a data set that ``write_synthetic_dataset`` wrote.
        columns: number of frames of each clip.
        tile: side of a frame in the picture, in pixels.

    Returns:
        An RGB image, 96 pixels of names and ``columns`` tiles wide.
    """
    margin = 96
    sheet = Image.new("RGB", (margin + columns * tile, len(CLASS_NAMES) * tile), "white")
    pen = ImageDraw.Draw(sheet)
    spec = SyntheticSpec(**_description_of(root)["spec"])
    for row, name in enumerate(CLASS_NAMES):
        # Consecutive clips show every class with one person. Further rows should show further persons.
        person = row % spec.clips_per_class_test
        frames = sorted((root / _Clip(spec, "test", person * len(CLASS_NAMES) + row).folder).iterdir())
        pen.text((6, row * tile + tile // 2 - 6), name, fill="black")
        for column in range(columns):
            with Image.open(frames[column * (len(frames) - 1) // (columns - 1)]) as frame:
                sheet.paste(frame.resize((tile, tile)), (margin + column * tile, row * tile))
    return sheet


def _size(spec: SyntheticSpec, split: Split) -> int:
    return spec.clips_per_class(split) * len(CLASS_NAMES)


def _description(spec: SyntheticSpec) -> dict[str, Any]:
    return {
        "note": NOTE,
        "classes": list(CLASS_NAMES),
        "clips": {split: _size(spec, split) for split in SPLITS},
        "spec": dataclasses.asdict(spec),
    }


def _description_of(root: Path) -> Any:
    try:
        return json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _draw_all(folder: Path, clips: list[_Clip], workers: int | None) -> Iterator[int]:
    processes = min(workers or usable_cores(), len(clips))
    if processes == 1:
        yield from (_draw_clip(folder, clip) for clip in clips)
        return
    # Not "fork": a process that has run torch has threads whose locks a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    with _safe_path(), ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent) as pool:
        yield from pool.map(_draw_clip, [folder] * len(clips), clips, chunksize=8)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Keep files of the working directory, such as a ``random.py``, out of the imports of new processes.

    Python obeys the variable since 3.11.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _draw_clip(folder: Path, clip: _Clip) -> int:
    """Draw one clip into its folder; return its number of frames."""
    rng, spec, identity = clip.generator(), clip.spec, clip.identity()
    count = int(rng.integers(spec.min_frames, spec.max_frames + 1))
    backdrop = _backdrop(spec.image_size, rng)
    light = _light(spec.image_size, rng)
    grain = rng.normal(0.0, rng.uniform(1.0, 5.0), (spec.image_size, spec.image_size, 3))
    poses = _poses(count, rng)
    target = folder / clip.folder
    target.mkdir(parents=True)
    for number, (pose, units) in enumerate(zip(poses, movement(CLASS_NAMES[clip.label], count, rng), strict=True), 1):
        face = np.asarray(draw_face(backdrop, identity, pose, units), dtype=np.float64)
        # New noise for every frame would take as long as the face, so the same grain is moved about.
        noise = np.roll(grain, int(rng.integers(spec.image_size**2)))
        pixels = np.clip(face * light + noise, 0.0, 255.0).astype(np.uint8)
        Image.fromarray(pixels).save(target / f"{number:05d}.jpg", quality=88)
    return count


def _poses(count: int, rng: np.random.Generator) -> list[Pose]:
    """Return the poses of a head that is slightly turned and moves slowly."""
    time = np.linspace(0.0, 1.0, count)

    def sway(middle: float, spread: float, motion: float) -> npt.NDArray[np.float64]:
        wave = np.sin(2 * np.pi * (time * rng.uniform(0.2, 0.9) + rng.random()))
        return np.asarray(rng.normal(middle, spread) + abs(rng.normal(0.0, motion)) * wave)

    courses = np.stack(
        [
            np.clip(sway(0.0, 0.1, 0.06), -0.35, 0.35),
            np.clip(sway(0.0, 0.04, 0.03), -0.15, 0.15),
            np.clip(sway(0.0, 0.04, 0.03), -0.15, 0.15),
            np.clip(sway(0.41, 0.01, 0.004), 0.38, 0.44),
            np.clip(sway(0.5, 0.01, 0.008), 0.46, 0.54),
            np.clip(sway(0.46, 0.01, 0.008), 0.42, 0.5),
        ],
        axis=1,
    )
    return [Pose(*(float(value) for value in row)) for row in courses]


def _backdrop(size: int, rng: np.random.Generator) -> Image.Image:
    """Draw a blurred room in shades of one colour, SUPERSAMPLING times the frame's size."""
    colour = rng.uniform(40, 215) + rng.normal(0.0, 18.0, 3)
    corners = colour + rng.normal(0.0, 22.0, (4, 4, 1)) + rng.normal(0.0, 6.0, (4, 4, 3))
    small = Image.fromarray(np.clip(corners, 0, 255).astype(np.uint8))
    return small.resize((size * SUPERSAMPLING,) * 2, Image.Resampling.BICUBIC)


def _light(size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return brightness factors [size, size, 3]: a light from one side, and its colour."""
    down, across = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0.0, 0.3) * (np.cos(angle) * across + np.sin(angle) * down)
    tint = rng.uniform(0.92, 1.05, 3)
    return np.asarray((rng.uniform(0.7, 1.05) * (1.0 + slope))[:, :, None] * tint)
