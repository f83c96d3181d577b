"""``dfer-deploy evaluate``: the numbers are those of the answers, and the matrix is written for machines and people."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import clips_of, save_reference, tiny_model

from dfer_deploy.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dfer_deploy.metrics import calibration, score
from dfer_deploy.model.dfer_clip import images_from_frames

NAMES = ("happiness", "sadness", "anger")


@pytest.mark.parametrize("changes", [{}, {"classifier": "linear", "depth": 0}], ids=str)
def test_scores_and_files(cli: Any, clip_list: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    save_checkpoint(tmp_path / "a.pt", model, {})
    result = cli(
        "evaluate", tmp_path / "a.pt", "--data", clip_list, "-o", tmp_path / "out", "--json", tmp_path / "a.json"
    )
    assert result.exit_code == 0, result.output
    with torch.inference_mode():
        logits = load_checkpoint(tmp_path / "a.pt").build_model()(images_from_frames(torch.from_numpy(clips_of(12))))
    labels = np.arange(12) % 3
    expected = score(labels, logits.argmax(dim=1).numpy(), NAMES)
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["uar"], found["war"], found["clips"]) == (expected.uar, expected.war, 12)
    assert found["confusion"] == expected.confusion.tolist()
    assert found["recalls"] == dict(zip(NAMES, expected.recalls, strict=True))
    assert found["calibration_error"] == pytest.approx(
        calibration(labels, logits.softmax(dim=1).numpy()).error, abs=0.01
    )
    for text in (f"{expected.uar:.2f} %", f"{found['calibration_error']:.2f} %", "recall anger", "unreadable clips"):
        assert text in result.output
    rows = list(csv.reader((tmp_path / "out" / "confusion.csv").read_text().splitlines()))
    assert rows[0][1:] == list(NAMES)
    assert [row[0] for row in rows[1:]] == list(NAMES)
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == expected.confusion.tolist()
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("provenance", "selected_on", "optimistic"),
    [
        ({"selected_on": "test"}, "test", True),
        ({"selected_on": "validation"}, "validation", False),
        ({}, None, None),
        ({"selected_on": ["test"]}, None, None),
    ],
    ids=str,
)
def test_a_checkpoint_that_was_chosen_on_its_test_list_is_named_optimistic(
    cli: Any, clip_list: Path, tmp_path: Path, provenance: dict[str, Any], selected_on: str | None, optimistic: bool
) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(), provenance)
    done = cli("evaluate", tmp_path / "a.pt", "--data", clip_list, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["selected_on"], found["optimistic"]) == (selected_on, optimistic)
    assert (selected_on or "not stated") in done.output
    assert ("these numbers are optimistic" in done.output) == bool(optimistic)


def test_a_reference_checkpoint_takes_its_position_and_names(cli: Any, clip_list: Path, tmp_path: Path) -> None:
    path = save_reference(tmp_path / "a.pth", tiny_model(position="front"))
    arguments = ["evaluate", path, "--data", clip_list, "--class-names", "x,y,z", "--json", tmp_path / "a.json"]
    assert cli(*arguments, "--prompt-position", "front").exit_code == 0
    assert list(json.loads((tmp_path / "a.json").read_text())["recalls"]) == ["x", "y", "z"]


def test_unreadable_clips_are_counted_and_too_many_are_an_error(
    cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    shutil.copytree(clip_list.parent, tmp_path / "clips")
    lines = clip_list.read_text().splitlines()
    many = tmp_path / "clips" / "many.txt"
    many.write_text("\n".join([*lines, *lines, "none 16 0"]) + "\n")
    result = cli("evaluate", own_checkpoint, "--data", many, "--json", tmp_path / "a.json")
    assert result.exit_code == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["clips"], list(found["unreadable"])) == (24, ["none"])
    (tmp_path / "clips" / "few.txt").write_text("\n".join([*lines, "none 16 0"]) + "\n")
    result = cli("evaluate", own_checkpoint, "--data", tmp_path / "clips" / "few.txt")
    assert result.exit_code == 2
    assert "1 of 13" in result.output


def test_a_folder_that_cannot_be_made_is_named(cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = cli("evaluate", own_checkpoint, "--data", clip_list, "-o", tmp_path / "file")
    assert result.exit_code == 2
    assert "cannot make the folder" in result.output
