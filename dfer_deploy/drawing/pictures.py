"""Drawing of a confusion matrix on axes, and as a picture of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_deploy.files import atomic_file
from dfer_deploy.metrics import Int64

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, CELL, ON_CELL = "#1b1e23", "#5f6670", "#004f80", "#fefefe"
"""Colours of text, of muted text, of a cell of 100 %, and of text on dark cells."""

CELL_INCHES = 0.52

_DARK = 0.68
"""The share above which a cell is dark, so that its numbers are drawn in white."""


def draw_confusion(axes: Axes, confusion: Int64, names: Sequence[str]) -> None:
    """Draw a confusion matrix: each row's shares as shades of one colour and in percent, with the counts below.

    One hue from light to dark is readable with every colour vision and in grey.

    Args:
        axes: empty axes with ``CELL_INCHES`` for each cell.
        confusion: counts, int64 [C, C]; rows are labels, columns predictions. A row without clips stays white.
        names: C class names beside the axes.
    """
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    classes = len(names)
    clips = confusion.sum(axis=1)
    frame = to_rgba(MUTED, 0.25)
    for row in range(classes):
        for column in range(classes):
            count = int(confusion[row, column])
            share = count / int(clips[row]) if clips[row] else 0.0
            corner = (column - 0.48, row - 0.48)
            axes.add_patch(
                Rectangle(corner, 0.96, 0.96, facecolor=to_rgba(CELL, share), edgecolor=frame, linewidth=0.6)
            )
            colour = ON_CELL if share > _DARK else INK if count else MUTED
            weight = "bold" if row == column else "normal"
            percent = f"{share:.0%}" if clips[row] else "–"
            axes.text(column, row - 0.05, percent, ha="center", color=colour, weight=weight, size=9)
            axes.text(column, row + 0.31, f"{count:,}", ha="center", color=colour, size=7)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.set_aspect("equal")
    for artist in (*axes.texts, *axes.patches):
        artist.set_in_layout(False)  # they lie within the axes; measuring them all takes most of the time
    axes.set_xticks(range(classes), list(names), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), [f"{name} ({int(n):,})" for name, n in zip(names, clips, strict=True)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled (clips)")


def write_confusion_picture(path: Path, confusion: Int64, class_names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix as a PNG.

    Args:
        path: file to write, atomically; its folder must exist.
        confusion: counts, int64 [C, C]; rows are labels, columns predictions.
        class_names: C class names.
        title: title above the matrix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 1.4 + CELL_INCHES * len(class_names)
    figure = Figure(figsize=(side, side), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_confusion(axes, confusion, class_names)
    axes.set_title(title, pad=12, loc="right")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
