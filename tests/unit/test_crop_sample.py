import numpy as np
import pytest

from dfer_deploy.clips.contact_sheet import MAX_ROWS
from dfer_deploy.crop_sample import CropSample
from dfer_deploy.windows import Face


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
    assert len(sample.rows()) == 2 * MAX_ROWS
    assert set(long) <= set(sample.rows())
    # How many there were is known.
    assert sample.tracks == 100


def test_a_whole_picture_is_one_track() -> None:
    sample = CropSample()
    assert sample.tracks == 0
    sample.add(0.0, face(0))
    assert sample.tracks == 1
