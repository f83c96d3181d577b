import numpy as np
import pytest

from dfer_deploy.clips.tracks import MAX_TRACKS
from dfer_deploy.drawing.contact_sheet import MAX_ROWS
from dfer_deploy.drawing.crop_sample import CropSample
from dfer_deploy.inference.windows import Face


def face(track: int, size: int = 4) -> Face:
    return Face(track, np.full((size, size, 3), track, np.uint8))


@pytest.mark.parametrize("count", [1, 48, 49, 97, 5000])
def test_the_crops_of_a_long_track_are_equally_far_apart_over_all_of_it(count: int) -> None:
    sample = CropSample()
    for step in range(count):
        sample.add(step / 4, face(1))
    row = sample.rows()[1]
    times = [4 * time_s for time_s, _ in row.crops]
    assert row.count == count
    assert min(count, 25) <= len(times) <= 48
    steps = set(np.diff(times))
    assert len(steps) == (count > 1)
    assert times[0] == 0
    assert times[-1] + max(steps, default=1) > count - 1


def test_crops_are_kept_small() -> None:
    sample = CropSample()
    sample.add(0.0, face(3, 224))
    ((_, crop),) = sample.rows()[3].crops
    assert crop.shape == (112, 112, 3)
    assert (crop == 3).all()


def test_of_many_tracks_those_with_the_most_crops_stay() -> None:
    sample = CropSample()
    long = range(5, 101, 10)
    for track in range(1, 101):
        for step in range(3 if track in long else 1):
            sample.add(track + step / 4, face(track))
    assert len(sample.rows()) == MAX_TRACKS + MAX_ROWS
    assert set(long) <= set(sample.rows())
    # How many there were is known.
    assert sample.tracks == 100


def test_who_begins_late_at_the_same_time_as_others_is_not_forgotten_for_them() -> None:
    sample = CropSample()
    for track in range(1, 101):
        for step in range(3):
            sample.add(track + step / 4, face(track))
    crowd = range(101, 101 + MAX_TRACKS)
    for step in range(20):
        for track in crowd:
            sample.add(200 + step / 4, face(track))
    assert {track: sample.rows()[track].count for track in crowd} == dict.fromkeys(crowd, 20)
    assert len(sample.rows()) == MAX_TRACKS + MAX_ROWS


def test_who_stays_is_not_forgotten_for_longer_ones_that_are_over() -> None:
    sample = CropSample()
    for track in range(1, 21):
        for step in range(60):
            sample.add(20 * track + step / 4, face(track))
    for step in range(100):
        sample.add(500 + step / 4, face(21))
        sample.add(500 + step / 4, face(22 + step))  # passes by
    assert sample.rows()[21].count == 100
    assert len([row for row in sample.rows().values() if row.count == 60]) == MAX_ROWS


def test_a_whole_picture_is_one_track() -> None:
    sample = CropSample()
    assert sample.tracks == 0
    sample.add(0.0, face(0))
    assert sample.tracks == 1
