"""Annotation lists: one clip a line, ``<folder or video> <number of frames> <class index>``.

The format of the reference implementation's ``annotation/*.txt``, where the folders are absolute on the authors' disk.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from dfer_deploy.clips.reading import frame_paths
from dfer_deploy.console import warn
from dfer_deploy.errors import ClipError, spelled


@dataclass(frozen=True)
class Annotation:
    """One labelled clip.

    Attributes:
        name: path as the list states it, which identifies the clip in every output.
        path: path on this machine.
        listed_frames: number of frames that the list states. The clip's actual number of frames is used.
        label: class index, 0 ≤ label < C.
    """

    name: str
    path: Path
    listed_frames: int
    label: int


def read_annotations(list_file: Path, num_classes: int, data_root: str | None = None) -> list[Annotation]:
    """Read an annotation list.

    Args:
        list_file: the list.
        num_classes: C; a label outside 0 … C − 1 is an error.
        data_root: folder of the clips. ``OLD=NEW`` replaces the prefix OLD of the listed paths by NEW. A plain folder
            replaces the shortest prefix for which the first clip exists in it. By default, relative paths start at the
            list's own folder.

    Raises:
        DferDeployError: the list cannot be read or is empty, a line is not valid (the error states its number), or
            ``data_root`` does not hold the clips.
    """
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ClipError(f"{list_file} cannot be read ({error.strerror}); expected an annotation list") from error
    except UnicodeDecodeError as error:
        raise ClipError(f"{list_file} is not a text file; expected an annotation list") from error
    rows = [_row(list_file, number, line, num_classes) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ClipError(f"{list_file} is empty; expected lines such as: clips/00001 64 3")
    relocate = _relocation([name for name, _, _ in rows], list_file, data_root)
    return [Annotation(name, relocate(name), frames, label) for name, frames, label in rows]


def warn_about_frame_counts(annotations: list[Annotation]) -> None:
    """Print one warning for all clips whose folder holds another number of frames than the list claims."""
    wrong = []
    for annotation in annotations:
        with contextlib.suppress(OSError):  # reported as unreadable when the clip is read
            if annotation.path.is_dir() and (found := len(frame_paths(annotation.path))) != annotation.listed_frames:
                wrong.append((annotation, found))
    if wrong:
        first, found = wrong[0]
        warn(
            f"{len(wrong)} of {len(annotations)} clips have another number of frames than the list says "
            f"(first: {first.name} has {found}, the list says {first.listed_frames}); the folders are used"
        )


def _row(list_file: Path, number: int, line: str, num_classes: int) -> tuple[str, int, int]:
    parts = line.strip().rsplit(maxsplit=2)
    try:
        name, frames, label = parts[0], int(parts[1]), int(parts[2])
    except (IndexError, ValueError):
        raise ClipError(
            f"{list_file} line {number} is {line.strip()[:120]!r}, expected: <folder or video> <frames> <class index>"
        ) from None
    if not 0 <= label < num_classes:
        raise ClipError(
            f"{list_file} line {number} has the class index {label}, the model has the classes 0–{num_classes - 1}; "
            "correct the list or use the checkpoint that belongs to it"
        )
    return name, frames, label


class _Relocation:
    """Replaces a prefix of listed paths."""

    def __init__(self, old: PurePath, new: Path) -> None:
        self.old, self.new = old, new

    def __call__(self, name: str) -> Path:
        path = PurePath(name)
        return self.new / (path.relative_to(self.old) if path.is_relative_to(self.old) else path)


def _relocation(names: list[str], list_file: Path, data_root: str | None) -> _Relocation:
    if data_root is None:
        return _Relocation(PurePath(), list_file.parent)
    # A folder's own name may have an equals sign in it.
    old, separator, new = (data_root, "", "") if Path(data_root).is_dir() else data_root.partition("=")
    root = Path(new if separator else data_root)
    if not root.is_dir():
        raise ClipError(
            f"{spelled('data_root')} is {str(root)!r}, which is not a folder; expected the folder that holds the clips"
        )
    if separator:
        if not any(PurePath(name).is_relative_to(old) for name in names):
            raise ClipError(f"no path of {list_file} starts with {old!r} (the first is {names[0]!r}); correct it")
        return _Relocation(PurePath(old), root)
    first = PurePath(names[0])
    for dropped in range(len(first.parts)):
        if root.joinpath(*first.parts[dropped:]).exists() and not (dropped == 0 and first.is_absolute()):
            return _Relocation(PurePath(*first.parts[:dropped]), root)
    raise ClipError(
        f"{spelled('data_root')} is {data_root!r}, which holds no part of {names[0]!r} (the first clip of "
        f"{list_file}); give OLD{os.sep}PREFIX=NEW{os.sep}PREFIX to say what replaces what"
    )
