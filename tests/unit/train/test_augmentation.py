"""Random changes: crops of the asked area and ratio, the arithmetic of Pillow, and all frames of a clip alike."""

from __future__ import annotations

import numpy as np
import pytest
import torchvision.transforms.functional
from PIL import Image

from dfer_deploy.train.augmentation import Crop, Variation, cropped, random_crop, random_variation, varied
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


def test_a_cut_does_not_look_around_its_edges() -> None:
    """The filter of a resize takes in neighbours; those outside of the crop must not be among them."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[16:48, 32:64] = 200
    out = cropped(image[np.newaxis], Crop(16, 32, 32, 32, False), 20)
    assert (out == 200).all()


WHOLE = Crop(0, 0, 64, 96, False)


def smooth() -> Image.Image:
    """Colours of every hue and brightness."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "value"), [("brightness", 0.6), ("contrast", 1.4), ("saturation", 0.3), ("hue", 0.3), ("hue", -0.37)]
)
def test_colours_are_torchvision_s(name: str, value: float) -> None:
    """Upstream calls these functions of torchvision for every frame."""
    image = smooth()
    adjust = getattr(torchvision.transforms.functional, f"adjust_{name}")
    out = varied(np.asarray(image)[np.newaxis], Variation(WHOLE, 0.0, ((name, value),)), 64)
    expected = adjust(image, value).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(out[0], np.asarray(expected))
    assert not np.array_equal(out[0], np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)))


def test_rotation_is_pillow_s_and_comes_before_the_crop() -> None:
    image = smooth()
    crop = Crop(5, 7, 40, 50, False)
    out = varied(np.asarray(image)[np.newaxis], Variation(crop, 4.0), 32)
    expected = image.rotate(4.0).crop((7, 5, 57, 45)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(out[0], np.asarray(expected))


def test_several_colours_follow_each_other() -> None:
    frames = np.asarray(smooth())[np.newaxis]
    darker = varied(frames, Variation(WHOLE, 0.0, (("brightness", 0.5),)), 64)
    both = varied(frames, Variation(WHOLE, 0.0, (("saturation", 0.0), ("brightness", 0.5))), 64)
    assert np.ptp(both.astype(int), axis=3).max() <= 1
    assert abs(float(both.mean()) - float(darker.mean())) < 5


def test_what_is_drawn_keeps_to_the_recipe() -> None:
    recipe = AugmentRecipe(rotation=4.0, brightness=0.5, saturation=2.0, hue=0.1)
    rng = np.random.default_rng(0)
    drawn = [random_variation(64, 96, recipe, rng) for _ in range(400)]
    angles = [variation.angle for variation in drawn]
    assert -4 <= min(angles) < -3.5
    assert 3.5 < max(angles) <= 4
    colours = [dict(variation.colours) for variation in drawn]
    for name, low, high in (("brightness", 0.5, 1.5), ("saturation", 0.0, 3.0), ("hue", -0.1, 0.1)):
        values = [colour[name] for colour in colours]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    assert len({tuple(name for name, _ in variation.colours) for variation in drawn}) == 6, "every order comes"
    plain = random_variation(64, 96, AugmentRecipe(), rng)
    assert (plain.angle, plain.colours) == (0.0, ())


def test_colours_and_rotation_are_the_same_for_all_frames() -> None:
    still = np.repeat(picture()[np.newaxis], 16, axis=0)
    recipe = AugmentRecipe(rotation=20, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    out = varied(still, random_variation(64, 96, recipe, np.random.default_rng(3)), 24)
    assert out.shape == (16, 24, 24, 3)
    assert out.dtype == np.uint8
    assert (out == out[0]).all()
