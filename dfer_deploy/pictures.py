"""Pictures of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dfer_deploy.files import atomic_file
from dfer_deploy.metrics import Int64

_DARK = 0.55
"""Share from which on the ground is so dark that its numbers are white."""


def write_confusion_picture(path: Path, confusion: Int64, class_names: Sequence[str], title: str) -> None:
    """Draws a confusion matrix as a PNG: each row's shares as shades of one colour and in percent, counts below them.

    Args:
        path: the file; its folder exists. Written atomically.
        confusion: counts [C, C]; rows are labels, columns predictions. A row without clips stays white.
        class_names: C names.
        title: stands above.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = len(class_names)
    clips = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(clips, 1)
    side = 1.9 + 0.78 * classes
    figure = Figure(figsize=(side, side), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # One hue from light to dark is read alike with every colour vision and in grey.
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row in range(classes):
        for column in range(classes):
            count, share = int(confusion[row, column]), float(shares[row, column])
            colour = "white" if share > _DARK else "black" if count else "0.65"
            weight = "bold" if row == column else "normal"
            percent = f"{share:.0%}" if clips[row, 0] else "–"
            axes.text(column, row - 0.1, percent, ha="center", va="center", color=colour, weight=weight, size=10)
            axes.text(column, row + 0.24, f"{count:,}", ha="center", va="center", color=colour, size=7)
    labels = [f"{name} ({int(n):,})" for name, n in zip(class_names, clips[:, 0], strict=True)]
    axes.set_xticks(range(classes), list(class_names), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), labels)
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled (clips)")
    axes.set_title(title, pad=12, loc="right")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
