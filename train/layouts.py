"""Read the clips of a recipe as annotations, from the files of different data sets.

``lists`` are the reference implementation's annotation lists. The other layouts are data sets as distributed. **None of
them was available to us.** The formats below come from the README that is distributed with DFEW, from MAFW's
(repository MAFW-database/MAFW), from the reference implementation's lists, which name the clips' folders, and from
public code that reads the data sets (folder ``preprocess`` of sunlicai/MAE-DFER, README of Former-DFER). They were
tried on drawn clips only.

- **DFEW**: ``EmoLabel_DataSplit/train(single-labeled)/set_1.csv`` has the header ``video_name,label`` and lines such as
  ``2522,6``, labels 1 to 7; frames in ``Clip/clip_224x224/02522/``, five digits.
- **FERV39k**: ``4_setups/All_scenes/train_All.csv`` has lines such as ``Action/Happy/0267 Happy``, without a header;
  frames in ``2_ClipsforFaceCrop/Action/Happy/0267/``.
- **MAFW**: ``Train & Test Set/single/no_caption/set_1/train.txt`` has lines such as ``03747.mp4 anger``; the faces are
  cropped by the user, frames in ``data/faces/03747/``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from dfer_deploy.clips.annotations import Annotation, read_annotations, warn_about_frame_counts
from dfer_deploy.clips.reading import frame_paths
from dfer_deploy.console import progress, warn
from dfer_deploy.errors import TrainingError
from dfer_deploy.train.recipe import DataRecipe, Recipe

_VIDEO_SUFFIXES = (".mp4", ".avi")


@dataclass(frozen=True)
class _Layout:
    """The places of a data set's lists and clips: first as distributed, then variants that others describe.

    Attributes:
        train_lists, test_lists: relative to the root.
        clips: folders of the clips, relative to the root; the paper's lists name the first one.
        place: function from a listed name to the clip's path in that folder.
        example: an example line of a list, for messages.
    """

    train_lists: tuple[str, ...]
    test_lists: tuple[str, ...]
    clips: tuple[str, ...]
    place: Callable[[str], PurePosixPath]
    example: str


def _five_digits(name: str) -> PurePosixPath:
    """Return the folder of a number: DFEW's CSV counts 1, 2, …; its folders are called 00001, 00002, …"""
    return PurePosixPath(PurePosixPath(name).stem.zfill(5))


def _without_suffix(name: str) -> PurePosixPath:
    """Return the folder of a video: MAFW's lists name videos, whose frames are in a folder of the same name."""
    path = PurePosixPath(name)
    return path.parent / path.stem


_LAYOUTS = {
    "dfew": _Layout(
        (
            "EmoLabel_DataSplit/train(single-labeled)/set_{fold}.csv",
            "EmoLabel_DataSplit/train(single_labeled)/set_{fold}.csv",
            "EmoLabel_DataSplit/train/set_{fold}.csv",
            "label/single_trainset_{fold}.csv",
        ),
        (
            "EmoLabel_DataSplit/test(single-labeled)/set_{fold}.csv",
            "EmoLabel_DataSplit/test(single_labeled)/set_{fold}.csv",
            "EmoLabel_DataSplit/test/set_{fold}.csv",
            "label/single_testset_{fold}.csv",
        ),
        # "_16f" are the same clips, brought to 16 frames by the data set's authors. "data" is Former-DFER's name.
        (
            "Clip/clip_224x224",
            "clip_224x224",
            "Clip/clip_224x224_avi",
            "Clip/clip_224x224_16f",
            "clip_224x224_16f",
            "data",
        ),
        _five_digits,
        "2522,6",
    ),
    "ferv39k": _Layout(
        ("4_setups/All_scenes/train_All.csv", "All_scenes/train_All.csv"),
        ("4_setups/All_scenes/test_All.csv", "All_scenes/test_All.csv"),
        ("2_ClipsforFaceCrop", "2_ClipsforFaceCrop/2_ClipsforFaceCrop"),
        PurePosixPath,
        "Action/Happy/0267 Happy",
    ),
    "mafw": _Layout(
        (
            "Train & Test Set/single/no_caption/set_{fold}/train.txt",
            "Train_Test_Set/single/no_caption/set_{fold}/train.txt",
            "split/single/no_caption/set_{fold}/train.txt",
        ),
        (
            "Train & Test Set/single/no_caption/set_{fold}/test.txt",
            "Train_Test_Set/single/no_caption/set_{fold}/test.txt",
            "split/single/no_caption/set_{fold}/test.txt",
        ),
        # The reference implementation's lists name "data/faces". "frames" and "clips" contain whole pictures.
        ("data/faces", "data/frames", "data/clips", "clips"),
        _without_suffix,
        "03747.mp4 anger",
    ),
}


def training_annotations(recipe: Recipe) -> list[Annotation]:
    """Return the training clips of the recipe's fold, in the order of the list, with the model's class indices.

    Missing clips are included; reading them reports them. Classes without clips cause a warning.

    Raises:
        DferDeployError: the list cannot be read, a line or label is not understood, a clip occurs twice, or none of the
            clips is where the layout expects them.
    """
    return _annotations(recipe, recipe.data.train_list, "training")


def test_annotations(recipe: Recipe) -> list[Annotation]:
    """Return the test clips of the recipe's fold; see ``training_annotations``."""
    return _annotations(recipe, recipe.data.test_list, "test")


def warn_about_shared_clips(training: Sequence[Annotation], tests: Sequence[Annotation]) -> None:
    """Warn if clips are in both lists, because a model that was trained on its test clips proves nothing."""
    trained = {_place(annotation) for annotation in training}
    shared = [annotation for annotation in tests if _place(annotation) in trained]
    if shared:
        warn(
            f"{len(shared)} of the {len(tests)} test clips are in the training list as well (the first: "
            f"{shared[0].name}), so the score says nothing about other clips; take them out of one of the two lists"
        )


def _annotations(recipe: Recipe, wanted: str, part: str) -> list[Annotation]:
    data, class_names = recipe.data, recipe.model.prompts.class_names
    for label, name in data.label_names.items():
        if name not in class_names:
            raise TrainingError(
                f"data.label_names.{label} is {name!r}, which is none of the model's classes; "
                f"{_nearest(name, class_names)}"
            )
    root = Path(data.root or ".")
    try:
        if data.layout == "lists":
            list_file = root / wanted.replace("{fold}", str(data.fold))
            annotations = _listed(list_file, data, class_names)
            warn_about_frame_counts(annotations)
        else:
            list_file = _list_file(root, data, wanted)
            annotations = _distributed(list_file, root, data, class_names)
    except OSError as error:  # no permission, a name that is too long, or a failing disk
        raise TrainingError(f"the clips of {root} cannot be read ({error}); check the list and the disk") from error
    _require_once(annotations, list_file)
    present = {annotation.label for annotation in annotations}
    absent = [name for index, name in enumerate(class_names) if index not in present]
    if absent:
        warn(f"the {part} list {list_file} has no clip of {', '.join(absent)}")
    return annotations


def _require_once(annotations: list[Annotation], list_file: Path) -> None:
    seen: dict[str, Annotation] = {}
    for annotation in annotations:
        earlier = seen.setdefault(_place(annotation), annotation)
        if earlier is not annotation:
            names = " and ".join(dict.fromkeys((earlier.name, annotation.name)))
            raise TrainingError(f"{list_file} lists the clip {names} twice; remove one of the two lines")


def _place(annotation: Annotation) -> str:
    """Return a key that is equal for two spellings of one path."""
    return os.path.normpath(annotation.path.absolute())


def _listed(list_file: Path, data: DataRecipe, class_names: tuple[str, ...]) -> list[Annotation]:
    """Read the clips of a reference list, whose labels are indices."""
    if not data.label_names:
        return read_annotations(list_file, len(class_names), data.data_root)
    for label in data.label_names:
        if not (label.isascii() and label.isdigit()):
            raise TrainingError(
                f"data.label_names has the label {label!r}, but annotation lists have class indices; "
                "write them as data.label_names = { 0 = ... }, or empty the table if they count the model's classes"
            )
    largest = max(int(label) for label in data.label_names)
    return [
        replace(annotation, label=_class_index(str(annotation.label), annotation.name, data, class_names))
        for annotation in read_annotations(list_file, largest + 1, data.data_root)
    ]


def _list_file(root: Path, data: DataRecipe, wanted: str) -> Path:
    """Return the wanted list; if a documented one is missing, the same list under another documented name."""
    layout = _LAYOUTS[data.layout]
    names: tuple[str, ...] = (wanted,)
    for documented in (layout.train_lists, layout.test_lists):
        if wanted in documented:
            names = (wanted, *documented)
    files = [root / name.replace("{fold}", str(data.fold)) for name in names]
    return next((file for file in files if file.is_file()), files[0])


def _distributed(list_file: Path, root: Path, data: DataRecipe, class_names: tuple[str, ...]) -> list[Annotation]:
    """Read the clips of a data set's own list."""
    layout = _LAYOUTS[data.layout]
    rows: list[tuple[str, PurePosixPath, int]] = []
    for number, line in _lines(list_file):
        where = f"{list_file} line {number}"
        # In MAFW's lists a caption may follow.
        name, label, *_ = [*re.split(r"[,\s]+", line, maxsplit=2), ""]
        if not label:
            raise TrainingError(f"{where} is {line[:120]!r}, expected such as: {layout.example}")
        if number == 1 and label.lower() == "label":
            continue
        place = layout.place(name)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise TrainingError(f"{where} names the clip {name!r}, expected such as: {layout.example}")
        index = _class_index(label, where, data, class_names)
        folder = place.parent.name
        if data.label_names.get(folder, class_names[index]) != class_names[index]:
            raise TrainingError(
                f"{where} says {label!r} of {name}, which lies in a folder {folder!r}; correct the list"
            )
        rows.append((name, place, index))
    if not rows:
        raise TrainingError(f"{list_file} is empty; expected lines such as: {layout.example}")
    folder_of_clips = _clips_folder(root, layout, data, (place for _, place, _ in rows))
    annotations = []
    for name, place, index in progress(rows, "looking for clips"):
        path = _existing(folder_of_clips / place)
        frames = len(frame_paths(path)) if path.is_dir() else 0
        annotations.append(Annotation(name, path, frames, index))
    return annotations


def _lines(list_file: Path) -> list[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers from 1."""
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TrainingError(
            f"{list_file} cannot be read ({error.strerror}); is --data the folder of the data set, as distributed?"
        ) from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{list_file} is not a text file; expected the data set's list of clips") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _class_index(label: str, where: str, data: DataRecipe, class_names: tuple[str, ...]) -> int:
    if label not in data.label_names:
        raise TrainingError(
            f"{where} has the label {label[:60]!r}, which data.label_names does not know; "
            f"{_nearest(label, data.label_names)}"
        )
    return class_names.index(data.label_names[label])


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    # Similar names are suggested only for words: a number is not more similar to 6 than to 1.
    near = [] if word.isdigit() else difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"


def _clips_folder(root: Path, layout: _Layout, data: DataRecipe, places: Iterable[PurePosixPath]) -> Path:
    """Return the first folder that contains at least one of the listed clips."""
    folders = [Path(data.data_root)] if data.data_root else [root / name for name in layout.clips]
    listed = list(places)
    for folder in folders:
        if folder.is_dir() and any(_existing(folder / place).exists() for place in listed):
            if folder != folders[0]:
                warn(f"the clips are read from {folder}; the paper's lists name {folders[0]}, which does not hold them")
            return folder
    raise TrainingError(
        f"none of the {len(listed)} listed clips is in {' or '.join(map(str, folders))} (the first: {listed[0]}); "
        "say where they are with data.data_root"
    )


def _existing(path: Path) -> Path:
    """Return a clip's frame folder, or the video of the same name if only that exists."""
    if not path.exists():
        for suffix in _VIDEO_SUFFIXES:
            if (video := path.with_name(path.name + suffix)).is_file():
                return video
    return path
