"""The labelled clips of a list, one after the other. Clips that cannot be read are recorded by name."""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from dfer_deploy.clips.annotations import Annotation, read_annotations, warn_about_frame_counts
from dfer_deploy.clips.reading import Clip, clip_from_path, frame_paths
from dfer_deploy.console import warn
from dfer_deploy.errors import ClipError, DferDeployError

MAX_UNREADABLE = 0.05
"""Limits the share of a list's clips that may be unreadable when a result or a model is made from the others."""

_READ_AHEAD = 32

T = TypeVar("T")


@dataclass
class LabelledClips:
    """An iterable over (annotation, clip) in the list's order. Threads decode at most 32 clips ahead.

    Attributes:
        annotations: all clips of the list.
        image_size: S, the side of the square clips in pixels.
        lists: files that list the clips.
        unreadable: reason by name for every clip that could not be read; filled while iterating.
    """

    annotations: list[Annotation]
    image_size: int
    lists: tuple[Path, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_list(
        cls, list_file: Path, num_classes: int, image_size: int, data_root: str | None = None
    ) -> LabelledClips:
        """Read a list, and warn about wrong frame counts. Arguments and errors are those of ``read_annotations``."""
        annotations = read_annotations(list_file, num_classes, data_root)
        warn_about_frame_counts(annotations)
        return cls(annotations, image_size, (list_file,))

    def __len__(self) -> int:
        return len(self.annotations)

    def __iter__(self) -> Iterator[tuple[Annotation, Clip]]:
        self.unreadable.clear()
        with ThreadPoolExecutor(thread_name_prefix="clips") as pool:
            for start in range(0, len(self.annotations), _READ_AHEAD):
                batch = self.annotations[start : start + _READ_AHEAD]
                for annotation, clip in zip(batch, pool.map(self._read, batch), strict=True):
                    if isinstance(clip, DferDeployError):
                        self.unreadable[annotation.name] = str(clip)
                    else:
                        yield annotation, clip

    def _read(self, annotation: Annotation) -> Clip | DferDeployError:
        try:
            return clip_from_path(annotation.path, self.image_size)
        except DferDeployError as error:
            return error

    def warn_about_unreadable(self) -> None:
        """Print one warning that names every clip that could not be read."""
        if self.unreadable:
            lines = "".join(f"\n  {name}: {reason}" for name, reason in self.unreadable.items())
            warn(f"{len(self.unreadable)} of {len(self.annotations)} clips could not be read and are left out:{lines}")

    def require_present(self) -> None:
        """Check that the clips exist, without decoding those that do.

        Raises:
            DferDeployError: more than 5 % of the clips do not exist.
        """
        with ThreadPoolExecutor(thread_name_prefix="clips") as pool:
            present = pool.map(lambda annotation: is_present(annotation.path), self.annotations)
            absent = [annotation for annotation, there in zip(self.annotations, present, strict=True) if not there]
            read = zip(absent, pool.map(self._read, absent), strict=True)
            self.unreadable = {a.name: str(clip) for a, clip in read if isinstance(clip, DferDeployError)}
        self.require_readable()

    def require_readable(self) -> None:
        """Check, after an iteration, that enough clips could be read.

        Raises:
            DferDeployError: more than 5 % of the clips could not be read.
        """
        if len(self.unreadable) > MAX_UNREADABLE * len(self.annotations):
            raise ClipError(
                f"{len(self.unreadable)} of {len(self.annotations)} clips could not be read, at most "
                f"{MAX_UNREADABLE:.0%} is accepted; the first: {next(iter(self.unreadable.values()))}"
            )


@dataclass
class SpooledClips(LabelledClips):
    """Labelled clips that are decoded once. The first pass writes their frames to a file, and later passes read it.

    Attributes:
        spool: an empty temporary file. A clip of 16 frames at 224 pixels takes 2.4 MB.

    Raises:
        DferDeployError: the first pass fills the disk.
    """

    spool: IO[bytes] = field(kw_only=True)
    _spooled: list[tuple[Annotation, tuple[int, ...]]] | None = field(default=None, init=False, repr=False)

    def __iter__(self) -> Iterator[tuple[Annotation, Clip]]:
        self.spool.seek(0)
        if self._spooled is None:
            yield from self._first_pass()
            return
        for annotation, shape in self._spooled:
            yield annotation, np.frombuffer(self.spool.read(math.prod(shape)), np.uint8).reshape(shape)

    def _first_pass(self) -> Iterator[tuple[Annotation, Clip]]:
        spooled = []
        for annotation, clip in super().__iter__():
            try:
                self.spool.write(np.ascontiguousarray(clip).data)
            except OSError as error:
                raise ClipError(
                    f"the frames of {len(self)} clips find no room in {tempfile.gettempdir()} ({error.strerror}); name "
                    "a larger folder in TMPDIR"
                ) from error
            spooled.append((annotation, clip.shape))
            yield annotation, clip
        self._spooled = spooled


@contextlib.contextmanager
def temporary_file() -> Iterator[IO[bytes]]:
    """Open a file without a name for ``SpooledClips``.

    Raises:
        DferDeployError: there is no folder for temporary files.
    """
    try:
        file = tempfile.TemporaryFile(prefix="dfer-clips-")  # noqa: SIM115 - left below
    except OSError as error:
        raise ClipError(
            f"no temporary file can be made for the clips' frames ({error.strerror or error}); name a folder in TMPDIR"
        ) from error
    with file:
        yield file


def is_present(path: Path) -> bool:
    """Check whether a path is a file or a folder of frames, without reading them."""
    try:
        return path.is_file() or bool(frame_paths(path))
    except (OSError, DferDeployError):
        return False  # reading the clip raises an error that states the cause


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` consecutive items. The last list may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
