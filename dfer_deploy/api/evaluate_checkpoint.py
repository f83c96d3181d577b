"""Score a checkpoint on labelled clips with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.console import progress, step
from dfer_deploy.errors import extras_named
from dfer_deploy.files import sha256_of_file
from dfer_deploy.metrics import softmax
from dfer_deploy.plain_data import checked_arguments
from dfer_deploy.specs import PromptPosition, require
from dfer_deploy.train.result import SELECTIONS
from dfer_deploy.verification.verification_result import ScoredAnswers, scored_answers


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a checkpoint on labelled clips.

    Attributes:
        checkpoint: path of the file.
        checkpoint_sha256: SHA-256 of the file.
        data: path of the annotation list.
        listed: number of clips in the list.
        clips: number of clips that could be read.
        score: UAR, WAR, recalls, confusion matrix and calibration.
        selected_on: the clips on which the checkpoint's epoch was chosen; None if the checkpoint does not say.
        unreadable: for each clip that could not be read, its name and the reason.
    """

    checkpoint: Path
    checkpoint_sha256: str
    data: Path
    listed: int
    clips: int
    score: ScoredAnswers
    selected_on: str | None
    unreadable: dict[str, str]

    @property
    def optimistic(self) -> bool | None:
        """Whether the epoch was chosen on a test list; None if that is unknown."""
        return None if self.selected_on is None else self.selected_on == "test"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in the form that ``evaluate --json`` writes."""
        return {
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": self.checkpoint_sha256,
            "data": str(self.data),
            "clips": self.clips,
            "uar": self.score.uar,
            "war": self.score.war,
            "calibration_error": self.score.calibration_error,
            "recalls": dict(self.score.recalls),
            "confusion": [list(row) for row in self.score.confusion],
            "selected_on": self.selected_on,
            "optimistic": self.optimistic,
            "unreadable": dict(self.unreadable),
        }


@extras_named("evaluating a checkpoint")
@checked_arguments
def evaluate_checkpoint(
    checkpoint: Path | str,
    data: Path | str,
    *,
    data_root: str | None = None,
    batch_size: int = 8,
    prompt_position: PromptPosition | None = None,
    class_names: tuple[str, ...] | None = None,
) -> EvaluationResult:
    """Score a checkpoint on the clips of a list. A GPU is used if there is one.

    Args:
        checkpoint: file of dfer-deploy or of the reference implementation.
        data: annotation list of labelled clips.
        data_root: where the listed clips are on this machine; see ``--data-root``.
        batch_size: number of clips in one pass.
        prompt_position: position of the learned contexts, which a reference checkpoint does not contain.
        class_names: in the order of the logits; a reference checkpoint does not contain them either.

    Raises:
        DferDeployError: the checkpoint or the list cannot be used, or more than 5 % of the clips cannot be read.
    """
    import torch

    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.train.evaluation import evaluate

    require(batch_size >= 1, f"the batch size is {batch_size}, expected at least 1")
    with step(f"read {checkpoint}"):
        loaded = load_checkpoint(Path(checkpoint), prompt_position=prompt_position, class_names=class_names)
        model = loaded.build_model().to("cuda" if torch.cuda.is_available() else "cpu")
    names = loaded.spec.prompts.class_names
    clips = LabelledClips.from_list(Path(data), len(names), loaded.spec.clip.vision.image_size, data_root)
    found = evaluate(model, progress(clips, "evaluating", len(clips)), batch_size)
    clips.warn_about_unreadable()
    clips.require_readable()
    selected_on = loaded.provenance.get("selected_on")
    return EvaluationResult(
        checkpoint=Path(checkpoint),
        checkpoint_sha256=sha256_of_file(Path(checkpoint)),
        data=Path(data),
        listed=len(clips),
        clips=len(found.labels),
        score=scored_answers("PyTorch", found.labels, found.logits.argmax(axis=1), softmax(found.logits), names),
        selected_on=selected_on if isinstance(selected_on, str) and selected_on in SELECTIONS else None,
        unreadable=dict(clips.unreadable),
    )
