"""The contact sheet shows the crops themselves, a bounded number of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dfer_deploy.clips.reading import Clip
from dfer_deploy.drawing.contact_sheet import MAX_COLUMNS, MAX_ROWS, CropRow, write_contact_sheet


def crop(shade: int, size: int = 32) -> Clip:
    return np.full((size, size, 3), shade, np.uint8)


def test_a_row_for_each_track_with_times(tmp_path: Path, texts: list[str]) -> None:
    rows = {2: CropRow([(1.0, crop(10)), (1.25, crop(60))], 2), 7: CropRow([(3.0, crop(200))], 1)}
    write_contact_sheet(tmp_path / "a.png", rows, 2)
    assert texts == ["2 tracks", "track 2", "2 crops", "1.00 s", "1.25 s", "track 7", "1 crop", "3.00 s"]
    with Image.open(tmp_path / "a.png") as picture:
        colours = {colour for count, colour in picture.getcolors(1 << 20) if count > 10_000}
    assert colours == {(10, 10, 10), (60, 60, 60), (200, 200, 200), (255, 255, 255)}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_many_tracks_and_crops_are_thinned_evenly(tmp_path: Path, texts: list[str]) -> None:
    rows = {
        track: CropRow([(float(k), crop(track)) for k in range(20 + track)], 1000 + track) for track in range(1, 29)
    }
    write_contact_sheet(tmp_path / "a.png", rows, 40)
    assert texts[0] == f"{MAX_ROWS} of 40 tracks"
    shown = range(29 - MAX_ROWS, 29)
    assert [text for text in texts if text.startswith("track")] == [f"track {k}" for k in shown]
    for track in shown:
        start = texts.index(f"track {track}")
        said, times = texts[start + 1 : start + 3], []
        for text in texts[start + 3 :]:
            if not text.endswith(" s"):
                break
            times.append(float(text[:-2]))
        assert said == [f"{1000 + track} crops", f"{len(times)} of them shown"]
        steps = set(np.diff(times))
        # As far apart as each other, from the first one to less than one more step before the last one.
        assert len(steps) == 1
        assert times[0] == 0.0
        assert times[-1] + steps.pop() > 19 + track
        assert 7 <= len(times) <= MAX_COLUMNS


def test_no_face_is_a_picture_that_says_so(tmp_path: Path, texts: list[str]) -> None:
    write_contact_sheet(tmp_path / "a.png", {}, 0)
    assert texts == ["no tracks"]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
