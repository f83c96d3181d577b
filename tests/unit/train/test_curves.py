"""The picture of a run is drawn from its history, and scalars never end a training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_deploy.train.curves import Scalars, write_curves


def history_of(epochs: int, rate: float = 1e-2) -> list[dict[str, object]]:
    return [
        {
            "epoch": epoch,
            "loss": 2 / epoch,
            "train_war": 100 - 80 / epoch,
            "rates": {"temporal": rate / epoch, "prompts": rate / 10},
            "validation_uar": 90 - 75 / epoch,
            "validation_war": 92 - 75 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


@pytest.mark.parametrize(("epochs", "rate"), [(1, 1e-2), (30, 1e-2), (3, 0.0)])
def test_curves_are_drawn(tmp_path: Path, epochs: int, rate: float) -> None:
    write_curves(tmp_path / "curves.png", history_of(epochs, rate), "UAR 50.00 %")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in pixels.tolist()}
    # Blue, orange and green of the palette, in their pure form somewhere within a line or marker.
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= colours


def test_without_tensorboard_one_warning_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    scalars = Scalars(tmp_path / "tensorboard", 1)
    scalars.add(1, {"train/loss": 1.0})
    scalars.add(2, {"train/loss": 1.0})
    scalars.close()
    assert capsys.readouterr().err.count("TensorBoard is not installed") == 1
    assert not (tmp_path / "tensorboard").exists()


def test_scalars_that_cannot_be_written_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file in the place of the folder")
    scalars = Scalars(tmp_path / "tensorboard", 1)
    scalars.add(1, {"train/loss": 1.0})
    scalars.close()
    assert capsys.readouterr().err.count("no more scalars are written") == 1
