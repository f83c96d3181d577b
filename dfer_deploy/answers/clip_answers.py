"""The answers of a client or a stream for one clip."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dfer_deploy.answers.tables import dataframe
from dfer_deploy.drawing.overlay import answer_picture
from dfer_deploy.files import atomic_file
from dfer_deploy.runtimes.predictor import Float32

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Answer:
    """The answer for one clip.

    Attributes:
        expression: name of the most probable class.
        confidence: probability of that class, in [0, 1].
        probabilities: probability of each class by name, in the order of the logits; they sum to 1.
        logits: logit of each class by name, a cosine divided by the temperature.
    """

    expression: str
    confidence: float
    probabilities: Mapping[str, float]
    logits: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data: every attribute by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "probabilities": dict(self.probabilities),
            "logits": dict(self.logits),
        }

    def to_pandas(self) -> DataFrame:
        """Convert to a table with one row: expression, confidence, and the probability of each class.

        Raises:
            DferDeployError: pandas is not installed.
        """
        return dataframe([self.to_dict()])

    def plot(self, path: Path | str | None = None) -> Image.Image:
        """Draw a bar for every class.

        Args:
            path: PNG file to write, atomically; None to write none.

        Returns:
            The picture.

        Raises:
            DferDeployError: the file cannot be written.
        """
        picture = answer_picture(tuple(self.probabilities), np.array(list(self.probabilities.values()), np.float32))
        if path is not None:
            with atomic_file(Path(path)) as temporary:
                picture.save(temporary, format="PNG")
        return picture

    def _repr_png_(self) -> bytes:
        """Show the answer as its picture in a notebook."""
        png = io.BytesIO()
        self.plot().save(png, format="PNG")
        return png.getvalue()


@dataclass(frozen=True)
class StreamAnswer(Answer):
    """The answer for the window of a stream that ends with the newest frame.

    Attributes:
        frames: number of distinct frames in the window, 1 to 16; below 16 the newest is repeated to fill it.
        resumed: True if another encoder answers than before, as after a rollout. It has encoded the whole window again.
    """

    frames: int = 16
    resumed: bool = False


def answer_from(labels: Sequence[str], logits: Float32, probabilities: Float32) -> Answer:
    """Build the answer for one clip.

    Args:
        labels: C class names in the order of the logits.
        logits: float32 [C].
        probabilities: float32 [C].
    """
    best = int(logits.argmax())
    return Answer(
        expression=labels[best],
        confidence=float(probabilities[best]),
        probabilities=dict(zip(labels, probabilities.tolist(), strict=True)),
        logits=dict(zip(labels, logits.tolist(), strict=True)),
    )


def stream_answer_from(
    labels: Sequence[str], logits: Float32, probabilities: Float32, *, frames: int, resumed: bool = False
) -> StreamAnswer:
    """Build the answer for a stream's window of ``frames`` distinct frames; see ``answer_from``."""
    answer = answer_from(labels, logits, probabilities)
    return StreamAnswer(
        answer.expression, answer.confidence, answer.probabilities, answer.logits, frames=frames, resumed=resumed
    )
