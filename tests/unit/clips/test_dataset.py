"""Clips of a list that are asked for more than once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from tiny import clips_of, write_frames

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import LabelledClips, SpooledClips
from dfer_deploy.errors import ClipError


@pytest.fixture
def annotations(tmp_path: Path) -> list[Annotation]:
    """Three clips; a fourth that is listed does not exist."""
    for index, clip in enumerate(clips_of(3, frames=2)):
        write_frames(tmp_path / f"{index}", clip)
    return [Annotation(f"film/{index}", tmp_path / f"{index}", 2, 0) for index in range(4)]


def test_spooled_clips_are_decoded_once(annotations: list[Annotation], tmp_path: Path) -> None:
    expected = [clip for _, clip in LabelledClips(annotations, 32)]
    with tempfile.TemporaryFile() as spool:
        clips = SpooledClips(annotations, 32, spool=spool)
        first = list(clips)
        for folder in tmp_path.iterdir():
            folder.rename(tmp_path / f"moved {folder.name}")
        for found in (first, list(clips), list(clips)):
            assert [annotation.name for annotation, _ in found] == ["film/0", "film/1", "film/2"]
            np.testing.assert_array_equal(np.stack([clip for _, clip in found]), np.stack(expected))
        assert set(clips.unreadable) == {"film/3"}


def test_a_first_pass_that_was_left_begins_again(annotations: list[Annotation]) -> None:
    with tempfile.TemporaryFile() as spool:
        clips = SpooledClips(annotations, 32, spool=spool)
        next(iter(clips))
        first, second = list(clips), list(clips)
        for (_, clip), (_, again) in zip(first, second, strict=True):
            np.testing.assert_array_equal(clip, again)


def test_a_full_disk_is_a_sentence(annotations: list[Annotation]) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        spool: IO[bytes] = full  # type: ignore[assignment]
        with pytest.raises(ClipError, match=r"find no room in .* name a larger folder"):
            list(SpooledClips(annotations, 32, spool=_NoSeek(spool)))


class _NoSeek:
    """A device cannot be rewound; nothing was written to it."""

    def __init__(self, file: Any) -> None:
        self.write, self.seek = file.write, lambda place: place
