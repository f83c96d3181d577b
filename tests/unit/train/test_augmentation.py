"""Random crops: within the picture, of the asked area and ratio, and the same for all frames of a clip."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dfer_deploy.train.augmentation import Crop, cropped, random_crop
from dfer_deploy.train.recipe import AugmentRecipe


def picture() -> np.ndarray:
    """uint8 [64, 96, 3] that tells its place: red grows to the right, green downwards."""
    y, x = np.mgrid[0:64, 0:96]
    return np.stack([x * 2, y * 3, np.zeros_like(x)], axis=2).astype(np.uint8)


def test_crops_keep_to_area_ratio_and_picture() -> None:
    recipe = AugmentRecipe(crop_scale=(0.2, 0.5), crop_ratio=(0.8, 1.25), flip=0.25)
    rng = np.random.default_rng(0)
    crops = [random_crop(64, 96, recipe, rng) for _ in range(500)]
    for crop in crops:
        assert 0 <= crop.top <= 64 - crop.height
        assert 0 <= crop.left <= 96 - crop.width
        assert 0.19 < crop.height * crop.width / (64 * 96) < 0.52
        assert 0.77 < crop.width / crop.height < 1.3
    assert 0.2 < np.mean([crop.mirrored for crop in crops]) < 0.3
    assert np.ptp([crop.left for crop in crops]) > 30
    assert np.ptp([crop.height * crop.width for crop in crops]) > 1000


def test_impossible_crops_fall_back_to_the_middle() -> None:
    recipe = AugmentRecipe(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    assert random_crop(64, 96, recipe, np.random.default_rng(0)) == Crop(0, 16, 64, 64, False)
    assert random_crop(96, 64, recipe, np.random.default_rng(0)) == Crop(16, 0, 64, 64, False)


def test_whole_crop_is_the_reading_resize() -> None:
    image = picture()
    out = cropped(image[np.newaxis], Crop(0, 0, 64, 96, False), 32)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(out[0], expected)


def test_cut_comes_from_the_asked_place() -> None:
    out = cropped(picture()[np.newaxis], Crop(top=10, left=40, height=32, width=32, mirrored=False), 32)
    assert np.array_equal(out[0], picture()[10:42, 40:72])


def test_mirror_turns_left_and_right() -> None:
    clip = np.stack([picture(), picture()])
    plain = cropped(clip, Crop(0, 0, 64, 96, False), 16)
    mirrored = cropped(clip, Crop(0, 0, 64, 96, True), 16)
    assert np.array_equal(mirrored, plain[:, :, ::-1])
    assert not np.array_equal(mirrored, plain)


@pytest.mark.parametrize("mirrored", [False, True])
def test_all_frames_are_changed_alike(mirrored: bool) -> None:
    still = np.repeat(picture()[np.newaxis], 16, axis=0)
    out = cropped(still, Crop(3, 5, 40, 44, mirrored), 24)
    assert out.shape == (16, 24, 24, 3)
    assert out.dtype == np.uint8
    assert (out == out[0]).all()
