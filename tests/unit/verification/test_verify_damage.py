"""What the truth must be before anything is compared with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_model

from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.errors import SettingError
from dfer_deploy.verification.baseline import Baseline, clip_hash
from dfer_deploy.verification.limits import LIMITS, Rounding
from dfer_deploy.verification.verify import show_clips


@pytest.mark.parametrize("what", ["features", "logits"])
def test_a_truth_that_is_not_finite_is_refused_with_its_clip(clip_list: Path, what: str) -> None:
    spec = tiny_model().spec
    clips = LabelledClips.from_list(clip_list, spec.prompts.num_classes, spec.clip.vision.image_size, None)
    read = list(clips)
    features = np.zeros((len(read), 16, spec.clip.embed_dim), np.float32)
    logits = np.zeros((len(read), spec.prompts.num_classes), np.float32)
    (features if what == "features" else logits)[5] = np.nan
    names, hashes = [annotation.name for annotation, _ in read], [clip_hash(clip) for _, clip in read]
    truth = Baseline(
        "ab" * 32,
        spec.to_dict(),
        names,
        hashes,
        features,
        logits,
        {precision: Rounding(1.0, 1.0) for precision in LIMITS},
    )
    with pytest.raises(
        SettingError, match="saved PyTorch fp32 answers the clip '005' with numbers that are not finite"
    ):
        show_clips(spec.prompts.class_names, truth, [], clips)
