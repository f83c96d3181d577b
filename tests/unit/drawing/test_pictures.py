"""The picture of a confusion matrix shows every number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dfer_deploy.drawing.pictures import write_confusion_picture


@pytest.mark.parametrize("classes", [2, 11])
def test_counts_shares_and_names_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def watched(self: Figure, *arguments: object, **options: object) -> None:
        figures.append(self)
        save(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", watched)
    names = [f"class {index}" for index in range(classes)]
    confusion = np.arange(classes * classes, dtype=np.int64).reshape(classes, classes) * 100
    confusion[1] = 0
    write_confusion_picture(tmp_path / "a.png", confusion, names, "the title")
    (axes,) = figures[0].axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[1::2] == [f"{count:,}" for count in confusion.flatten()]
    assert texts[0] == f"{0:.0%}"
    assert texts[2 * (classes - 1)] == f"{confusion[0, -1] / confusion[0].sum():.0%}"
    assert texts[2 * classes] == "–", "a class without clips has no shares"
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert axes.get_yticklabels()[1].get_text() == "class 1 (0)"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
