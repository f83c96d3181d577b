"""The curves of a run: scalars for TensorBoard during the run, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfer_deploy.console import warn
from dfer_deploy.files import atomic_file

_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
"""From Okabe and Ito's palette ("Color Universal Design", 2008), which colour-blind people can distinguish."""

_PART_STYLES = {
    "temporal": ("temporal model", _BLUE, "-"),
    "image_encoder": ("image encoder", _ORANGE, "--"),
    "prompts": ("contexts", _GREEN, "-."),
    "head": ("linear head", _PURPLE, ":"),
}


class Scalars:
    """Scalars for TensorBoard over the number of steps. If they cannot be written, one warning is shown."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open the folder.

        Args:
            folder: folder of the event files, created if necessary.
            first_step: scalars of an earlier part of the run from this step on are hidden.
        """
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warn("TensorBoard is not installed, so no scalars are written; install it, or set run.tensorboard to false")
            return
        try:
            self._writer = SummaryWriter(str(folder), purge_step=first_step)
        except OSError as error:
            self._give_up(error)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of one step."""
        try:
            for name, value in values.items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write the remaining scalars and close the file."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        warn(f"no more scalars are written for TensorBoard ({error.strerror or error}); the training goes on")


def write_curves(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss, accuracies and learning rates over the epochs as a PNG, atomically.

    Args:
        path: path of the picture.
        history: one entry for every epoch, as in ``state.Progress``; at least one.
        title: title above the curves.

    Raises:
        DferDeployError: the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, accuracy, rates = figure.subplots(1, 3)
    epochs = [entry["epoch"] for entry in history]
    marker = "o" if len(history) == 1 else ""

    loss.plot(epochs, [entry["loss"] for entry in history], color=_BLUE, marker=marker)
    loss.set_ylabel("training loss")
    loss.set_ylim(bottom=0)

    accuracy.plot(epochs, [entry["train_war"] for entry in history], color=_BLUE, marker=marker, label="training, WAR")
    for split in ("validation", "test"):
        for measure, colour, style in (("war", _ORANGE, "-"), ("uar", _GREEN, "--")):
            name = f"{split}_{measure}"
            if name in history[0]:
                values = [entry[name] for entry in history]
                label = f"{split}, {measure.upper()}"
                accuracy.plot(epochs, values, style, color=colour, marker=marker, label=label)
    accuracy.set_ylabel("%")
    accuracy.set_ylim(0, 100)
    accuracy.legend(loc="lower right", frameon=False)

    for name in history[0]["rates"]:
        label, colour, style = _PART_STYLES[name]
        values = [entry["rates"][name] for entry in history]
        rates.plot(epochs, values, style, color=colour, marker=marker, label=label)
    rates.set_ylabel("learning rate")
    if any(rate > 0 for entry in history for rate in entry["rates"].values()):
        rates.set_yscale("log")
    rates.legend(frameon=False)

    for axes in (loss, accuracy, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
