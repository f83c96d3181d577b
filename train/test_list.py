"""The list of a run's test clips, as ``evaluate`` and ``verify`` read it, whatever files the data set came in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import TrainingError
from dfer_deploy.files import atomic_file
from dfer_deploy.train.layouts import test_annotations
from dfer_deploy.train.recipe import Recipe

TEST_LIST = "test.txt"


def write_test_list(recipe: Recipe, folder: Path) -> Path:
    """Writes the test clips of the recipe's fold into the folder's ``test.txt``, and gives its path.

    Raises:
        DferDeployError: see ``test_annotations`` and ``write_reference_list``; or the data set's own list is there.
    """
    require_another_list(recipe, folder)
    write_reference_list(folder / TEST_LIST, test_annotations(recipe))
    return folder / TEST_LIST


def require_another_list(recipe: Recipe, folder: Path) -> None:
    """Makes sure that ``write_test_list`` would replace none of the data set's own lists.

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
    """Writes clips as a list of the reference implementation (see ``clips.annotations``), atomically.

    Args:
        path: the list; an existing one is replaced.
        annotations: the clips. Their places are written as absolute paths, with the frame counts that they state and
            the model's class indices, so that ``read_annotations`` needs nothing else to find them.

    Raises:
        DferDeployError: a path cannot stand in a text file of lines, or the list cannot be written.
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
    """Whether no byte of a file's name was left that is no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
