"""Every strategy of the paper's tables from a recipe to a score, with the command line alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from dfer_deploy.checkpoints.checkpoint import load_checkpoint
from dfer_deploy.train.model_recipe import Strategy
from dfer_deploy.train.synthetic import SyntheticSpec, write_synthetic_dataset

RECIPE = """
[model]
strategy = "{strategy}"
template = "an expression of {{name}}."
[model.clip]
embed_dim = 32
vision = {{ image_size = 32, patch_size = 16, width = 32, layers = 1, head_width = 16 }}
text = {{ width = 16, layers = 1, heads = 1 }}
[model.prompts]
class_names = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]
[optim]
epochs = 1
[run]
device = "cpu"
select = "last"
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "faces"
    write_synthetic_dataset(folder, SyntheticSpec(2, 1, 1, 1, image_size=32), workers=1)
    return folder


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_a_strategy_is_trained_and_scored(cli: Any, faces: Path, tmp_path: Path, strategy: str) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE.format(strategy=strategy))
    trained = cli("train", tmp_path / "mine.toml", "--data", faces, "-o", tmp_path / "run", "--json", tmp_path / "t")
    assert trained.exit_code == 0, trained.output
    checkpoint = tmp_path / "run" / "last.pt"
    # What is advised must work: the texts of Co-CoOp depend on the clip, so export refuses it.
    advised = f"dfer-deploy export {checkpoint}" in trained.output.replace("\n", "")
    assert advised == (strategy != "cocoop")
    spec = load_checkpoint(checkpoint).spec
    assert spec.prompts.class_texts[0] == "an expression of happiness."
    assert cli("evaluate", checkpoint, "--data", faces / "test.txt", "--json", tmp_path / "e").exit_code == 0
    scored = json.loads((tmp_path / "e").read_text())
    assert scored["clips"] == 7
    assert scored["war"] == load_checkpoint(checkpoint).provenance["test_war"]
