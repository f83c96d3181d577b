"""Run a model on labelled clips, for scores during and after training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.dataset import in_batches
from dfer_deploy.clips.reading import Clip
from dfer_deploy.errors import TrainingError, spelled
from dfer_deploy.metrics import Score, score
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames


@dataclass(frozen=True)
class Evaluation:
    """The answers of a model to labelled clips.

    Attributes:
        annotations: the clips, in the order of the rows.
        logits: float32 [N, C].
        labels: int64 [N].
    """

    annotations: list[Annotation]
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def score(self, class_names: Sequence[str]) -> Score:
        """Return UAR, WAR and recalls of the most probable classes."""
        return score(self.labels, self.logits.argmax(axis=1), class_names)


def evaluate(model: DferClip, clips: Iterable[tuple[Annotation, Clip]], batch_size: int = 32) -> Evaluation:
    """Run a model on clips. Its mode (training or evaluation) is restored afterwards.

    Args:
        model: the model; the clips are sent to its device.
        clips: clips with their annotations, uint8 [16, S, S, 3] each.
        batch_size: number of clips in one pass.

    Raises:
        DferDeployError: there are no clips.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    annotations: list[Annotation] = []
    logits: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            for batch in in_batches(clips, batch_size):
                frames = torch.from_numpy(np.stack([clip for _, clip in batch])).to(device)
                logits.append(model(images_from_frames(frames)).cpu())
                annotations += [annotation for annotation, _ in batch]
    finally:
        model.train(training)
    if not annotations:
        raise TrainingError(
            f"0 clips to evaluate, expected at least 1; look at the test list and {spelled('data_root')}"
        )
    labels = np.array([annotation.label for annotation in annotations], dtype=np.int64)
    return Evaluation(annotations, torch.cat(logits).numpy(), labels)
