"""The list of a run's test clips, in the format that ``evaluate`` and ``verify`` read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import TrainingError
from dfer_deploy.files import atomic_file
from dfer_deploy.train.layouts import test_annotations
from dfer_deploy.train.recipe import Recipe

TEST_LIST = "test.txt"
"""Name of the list in the run's folder."""


def write_test_list(recipe: Recipe, folder: Path) -> Path:
    """Write the test clips of the recipe's fold into the folder's ``test.txt``; return its path.

    Raises:
        DferDeployError: see ``test_annotations`` and ``write_reference_list``; or the data set's own list is there.
    """
    require_another_list(recipe, folder)
    write_reference_list(folder / TEST_LIST, test_annotations(recipe))
    return folder / TEST_LIST


def require_another_list(recipe: Recipe, folder: Path) -> None:
    """Check that ``write_test_list`` would not replace one of the data set's own lists.

    Raises:
        DferDeployError: the folder's ``test.txt`` is one of the recipe's lists.
    """
    data = recipe.data
    for name in (data.train_list, data.test_list):
        own = Path(data.root or ".") / name.replace("{fold}", str(data.fold))
        if own.resolve() == (folder / TEST_LIST).resolve():
            raise TrainingError(
                f"{folder / TEST_LIST} is a list of the data set, and the run would write its own there; "
                "choose another -o"
            )


def write_reference_list(path: Path, annotations: Sequence[Annotation]) -> None:
    """Write clips as a list of the reference implementation (see ``clips.annotations``), atomically.

    Args:
        path: path of the list; an existing file is replaced.
        annotations: the clips. The list contains their absolute paths, their stated numbers of frames and the model's
            class indices, so ``read_annotations`` needs nothing else to find them.

    Raises:
        DferDeployError: a path cannot be written in a line of text, or the list cannot be written.
    """
    lines = []
    for annotation in annotations:
        place = str(annotation.path.absolute())
        if len(place.splitlines()) != 1 or not _is_unicode(place):
            raise TrainingError(f"{path} cannot name the clip {place!r}; give its folders names of one line of text")
        lines.append(f"{place} {annotation.listed_frames} {annotation.label}\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _is_unicode(text: str) -> bool:
    """Return whether a file name is valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
