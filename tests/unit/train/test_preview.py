"""The contact sheet: a row for each class that has a clip, its varied frames beside the unchanged one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_deploy.errors import WriteError
from dfer_deploy.train.preview import write_preview
from dfer_deploy.train.recipe import AugmentRecipe, Recipe

TILES = [(166, 112), *[(294 + 116 * column, 112) for column in range(8)]]
"""Left edge and width of the columns."""


def tiles(path: Path) -> list[list[np.ndarray]]:
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet).astype(int)
    rows = (len(pixels) - 96 - 12) // 116
    return [
        [pixels[top : top + 112, left : left + width] for left, width in TILES]
        for top in (96 + 116 * row for row in range(rows))
    ]


def test_every_class_has_a_row_of_its_own_clip(recipe: Recipe, tmp_path: Path) -> None:
    write_preview(recipe, tmp_path / "sheet.png")
    rows = tiles(tmp_path / "sheet.png")
    assert len(rows) == 7
    assert len({row[0].tobytes() for row in rows}) == 7
    assert all(len({tile.tobytes() for tile in row}) > 4 for row in rows), "time passes"


def test_the_recipe_s_changes_are_shown(recipe: Recipe, tmp_path: Path) -> None:
    dark = replace(recipe.augment, brightness=0.9)
    write_preview(replace(recipe, augment=dark), tmp_path / "sheet.png")
    strengths = []
    for unchanged, *varied in tiles(tmp_path / "sheet.png"):
        factors = [float(tile.mean() / unchanged.mean()) for tile in varied]
        assert max(factors) - min(factors) < 0.2, "all frames alike"
        strengths.append(np.mean(factors))
    assert max(strengths) - min(strengths) > 0.4, "every clip has a brightness of its own"
    write_preview(replace(recipe, augment=AugmentRecipe(flip=0.0)), tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "sheet.png").read_bytes()


def test_classes_without_a_clip_have_no_row(recipe: Recipe, root: Path, tmp_path: Path) -> None:
    lines = [line for line in (root / "train.txt").read_text().splitlines() if line[-1] in "02"]
    (tmp_path / "two.txt").write_text("\n".join(lines))
    data = replace(recipe.data, root=str(tmp_path), train_list="two.txt", data_root=str(root))
    write_preview(replace(recipe, data=data), tmp_path / "sheet.png")
    assert len(tiles(tmp_path / "sheet.png")) == 2


def test_a_clip_that_cannot_be_decoded_gives_way_to_the_next(recipe: Recipe, root: Path, tmp_path: Path) -> None:
    lines = (root / "train.txt").read_text().splitlines()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "00001.png").write_bytes(b"no picture")
    listed = [f"{tmp_path / 'broken'} 1 0", *(f"{root}/{line}" for line in lines)]
    (tmp_path / "train.txt").write_text("\n".join(listed))
    data = replace(recipe.data, root=str(tmp_path))
    write_preview(replace(recipe, data=data), tmp_path / "sheet.png")
    assert len(tiles(tmp_path / "sheet.png")) == 7


def test_a_place_that_cannot_be_written_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot write"):
        write_preview(recipe, tmp_path / "absent" / "sheet.png")
