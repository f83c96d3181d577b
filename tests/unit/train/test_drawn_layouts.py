"""The drawn set in each data set's files: read back by its recipe, and the recipe trains on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.checkpoints.checkpoint import load_checkpoint
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import TrainingError
from dfer_deploy.train import layouts
from dfer_deploy.train.drawn_layouts import LAYOUTS
from dfer_deploy.train.expressions import CLASS_NAMES
from dfer_deploy.train.loop import train
from dfer_deploy.train.recipe import Recipe, recipe_from_toml
from dfer_deploy.train.synthetic import SyntheticSpec, contact_sheet, write_synthetic_dataset

SMALL = {"clips_per_class_train": 4, "clips_per_class_test": 2, "identities_train": 3, "identities_test": 2}
TINY = [
    "model.open_clip=none",
    "model.pretrained=none",
    "model.clip={embed_dim=32, vision={image_size=32, patch_size=16, width=32, layers=1, head_width=16}, "
    "text={width=16, layers=1, heads=1}}",
    "model.temporal={heads=2, head_width=8, mlp_width=32}",
    "model.prompts.contexts=2",
    "optim.epochs=1",
    "run.device=cpu",
    "run.tensorboard=false",
]
"""Turns the paper's model into one that trains in a second."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same data set in every layout."""
    parent = tmp_path_factory.mktemp("drawn")
    for layout in LAYOUTS:
        spec = SyntheticSpec(**SMALL, min_frames=2, max_frames=3, image_size=32, layout=layout)
        write_synthetic_dataset(parent / layout, spec, workers=1)
    return {layout: parent / layout for layout in LAYOUTS}


def recipe_of(layout: str, root: Path, *settings: str) -> Recipe:
    name = "synthetic" if layout == "lists" else layout
    return recipe_from_toml(name, [f"data.root={root}", *settings])


def pixels(clip: Annotation) -> str:
    """What tells drawn clips apart."""
    return hashlib.sha256(b"".join(frame.read_bytes() for frame in sorted(clip.path.iterdir()))).hexdigest()


def labelled(clips: list[Annotation]) -> dict[str, int]:
    return {pixels(clip): clip.label for clip in clips}


@pytest.mark.parametrize("layout", ["dfew", "ferv39k", "mafw"])
def test_every_layout_holds_the_same_clips_with_the_same_labels(drawn: dict[str, Path], layout: str) -> None:
    def all_of(name: str) -> dict[str, int]:
        recipe = recipe_of(name, drawn[name])
        return labelled([*layouts.training_annotations(recipe), *layouts.test_annotations(recipe)])

    expected = all_of("lists")
    assert len(expected) == 6 * len(CLASS_NAMES)
    assert all_of(layout) == expected


@pytest.mark.parametrize("layout", ["dfew", "mafw"])
def test_folds_are_made_of_persons_and_every_clip_is_tested_once(drawn: dict[str, Path], layout: str) -> None:
    lists = recipe_of("lists", drawn["lists"])
    person = {
        pixels(clip): clip.name[7:11] + clip.name.split("_")[2]
        for clip in [*layouts.training_annotations(lists), *layouts.test_annotations(lists)]
    }
    tested: list[str] = []
    for fold in range(1, 6):
        recipe = recipe_of(layout, drawn[layout], f"data.fold={fold}")
        training = labelled(layouts.training_annotations(recipe))
        test = labelled(layouts.test_annotations(recipe))
        assert len(training) + len(test) == len(person)
        assert not {person[clip] for clip in training} & {person[clip] for clip in test}
        tested += test
    assert sorted(tested) == sorted(person)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recipe_trains_on_it(drawn: dict[str, Path], layout: str, tmp_path: Path) -> None:
    fold = 3 if layout in ("dfew", "mafw") else 1
    recipe = recipe_of(layout, drawn[layout], *TINY, f"data.fold={fold}", "model.fast_start=none")
    result = train(recipe, tmp_path / "run")
    assert int(result.score.confusion.sum()) == len(layouts.test_annotations(recipe))
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.spec.prompts.class_names == recipe.model.prompts.class_names
    assert checkpoint.provenance["recipe"]["data"]["layout"] == layout
    assert checkpoint.provenance["recipe"]["data"]["fold"] == fold
    assert checkpoint.provenance["dataset"]["description"]["spec"]["layout"] == layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_contact_sheet_shows_every_class(drawn: dict[str, Path], layout: str) -> None:
    assert contact_sheet(drawn[layout]).tobytes() == contact_sheet(drawn["lists"]).tobytes()


def test_too_few_persons_for_five_folds_are_named() -> None:
    with pytest.raises(TrainingError, match="3 persons cannot be in 5 folds, as dfew has"):
        SyntheticSpec(2, 1, 9, 9, layout="dfew")
    with pytest.raises(TrainingError, match="layout is 'DFEW', expected one of lists, dfew"):
        SyntheticSpec(layout="DFEW")  # type: ignore[arg-type]


def test_the_command_says_what_it_drew_and_what_comes_next(cli: Any, tmp_path: Path) -> None:
    result = cli(
        "synthetic", tmp_path / "set", "--layout", "mafw", "--clips-per-class", 4, "--test-clips-per-class", 1,
        "--workers", 1,
    )  # fmt: skip
    assert result.exit_code == 0
    assert "28 training and 7 test clips" in result.output
    assert "together in 5 folds" in result.output
    assert f"dfer-deploy train mafw --data {tmp_path / 'set'} -o RUN" in result.output
    assert json.loads((tmp_path / "set" / "dataset.json").read_text())["spec"]["layout"] == "mafw"
    assert (tmp_path / "set" / "contact_sheet.png").stat().st_size > 10_000
