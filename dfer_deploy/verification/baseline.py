"""The truth that a bundle is verified against: PyTorch in this process, or its saved answers."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.reading import Clip
from dfer_deploy.console import step
from dfer_deploy.errors import ResultError
from dfer_deploy.files import atomic_file
from dfer_deploy.runtimes.predictor import Float32, Frames
from dfer_deploy.specs import MAX_FRAMES, ModelSpec, Precision
from dfer_deploy.verification.limits import LIMITS, Rounding

if TYPE_CHECKING:
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor

FORMAT = "dfer-deploy-baseline/2"
"""Format of a baseline file. It must change when an older version could not read the file or would misread it."""


class Truth(Protocol):
    """A source of answers that are right by definition."""

    @property
    def name(self) -> str: ...

    @property
    def checkpoint_sha256(self) -> str:
        """SHA-256 of the checkpoint that gives the answers."""
        ...

    def answer(self, annotations: list[Annotation], frames: Frames) -> tuple[Float32, Float32]:
        """Return frame features [B, T, L] and logits [B, C] for clips [B, T, H, W, 3]."""
        ...

    def rounding_costs(self, frames: Frames) -> dict[Precision, Rounding]:
        """Return what rounding to each precision costs the checkpoint on some clips; see ``verification.rounding``."""
        ...


@dataclass(frozen=True)
class PredictorTruth:
    """A truth that runs a checkpoint in PyTorch."""

    predictor: TorchPredictor
    checkpoint_sha256: str

    @property
    def name(self) -> str:
        return self.predictor.name

    def answer(self, annotations: list[Annotation], frames: Frames) -> tuple[Float32, Float32]:
        features = self.predictor.encode(frames)
        return features, self.predictor.classify(features).logits

    def rounding_costs(self, frames: Frames) -> dict[Precision, Rounding]:
        from dfer_deploy.verification.rounding import rounding_costs

        with step("measure what rounding costs the model"):
            return rounding_costs(self.predictor.model, frames)


@dataclass(frozen=True)
class Baseline:
    """Answers of PyTorch that were saved on a machine with PyTorch.

    Attributes:
        checkpoint_sha256: SHA-256 of the checkpoint that gave the answers.
        spec: the checkpoint's model, in the form of ``ModelSpec.to_dict``.
        clip_names: names of the clips in the annotation list, [N].
        clip_hashes: SHA-256 of the frames of each clip, [N].
        frame_features: float32 [N, 16, L].
        logits: float32 [N, C].
        rounding: what rounding to each precision costs the checkpoint.
    """

    checkpoint_sha256: str
    spec: dict[str, Any]
    clip_names: list[str]
    clip_hashes: list[str]
    frame_features: Float32
    logits: Float32
    rounding: dict[Precision, Rounding]

    @property
    def name(self) -> str:
        return "saved PyTorch fp32"

    def answer(self, annotations: list[Annotation], frames: Frames) -> tuple[Float32, Float32]:
        rows = [self._row(annotation, clip) for annotation, clip in zip(annotations, frames, strict=True)]
        return self.frame_features[rows], self.logits[rows]

    def rounding_costs(self, frames: Frames) -> dict[Precision, Rounding]:
        return self.rounding

    def _row(self, annotation: Annotation, clip: Clip) -> int:
        try:
            row = self.clip_names.index(annotation.name)
        except ValueError:
            raise ResultError(
                f"the baseline has no answer for the clip {annotation.name!r}; save it again with this list"
            ) from None
        if self.clip_hashes[row] != clip_hash(clip):
            raise ResultError(
                f"the clip {annotation.name!r} has other pixels here than where the baseline was saved; "
                "use the same files and the same versions of Pillow and PyAV"
            )
        return row


def clip_hash(clip: Clip) -> str:
    """Return the SHA-256 of a clip's frames, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(clip).tobytes()).hexdigest()


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline atomically, as an ``.npz`` file without pickles."""
    header = {"format": FORMAT, "checkpoint_sha256": baseline.checkpoint_sha256, "spec": baseline.spec}
    header |= {"rounding": {precision: vars(cost) for precision, cost in baseline.rounding.items()}}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            header=np.array(json.dumps(header)),
            clip_names=np.array(baseline.clip_names),
            clip_hashes=np.array(baseline.clip_hashes),
            frame_features=baseline.frame_features,
            logits=baseline.logits,
        )


def load_baseline(path: Path, spec: ModelSpec) -> Baseline:
    """Read a baseline and check that it fits the model.

    Raises:
        DferDeployError: the file is missing, damaged or too large, or belongs to another model.
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as content:
            header = json.loads(str(content["header"]))
            names, hashes = _texts(content["clip_names"]), _texts(content["clip_hashes"])
            features, logits = _numbers(content["frame_features"]), _numbers(content["logits"])
        saved_format, sha256, saved_spec = header["format"], header["checkpoint_sha256"], dict(header["spec"])
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError("it does not name the checkpoint by its SHA-256")
        rounding = _costs(header["rounding"], features, logits)
    except Exception as error:  # damaged bytes raise exceptions of zlib, tokenize, json and NumPy
        raise ResultError(
            f"{path} is not a baseline ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "make one with: dfer-deploy verify … --save-baseline FILE"
        ) from error
    shapes = (len(names), MAX_FRAMES, spec.clip.embed_dim), (len(names), spec.prompts.num_classes)
    if saved_format != FORMAT or (features.shape, logits.shape) != shapes or len(hashes) != len(names):
        raise ResultError(
            f"{path} holds {saved_format} with features {features.shape} and logits {logits.shape}, the bundle needs "
            f"{FORMAT} with {shapes[0]} and {shapes[1]}; save the baseline again"
        )
    if saved_spec != spec.to_dict():
        raise ResultError(f"{path} was saved for another model than the bundle's; save the baseline again")
    return Baseline(sha256, saved_spec, names, hashes, features, logits, rounding)


def _costs(stated: Mapping[str, Any], features: Float32, logits: Float32) -> dict[Precision, Rounding]:
    """Read the rounding costs. A cost above the largest answer is refused, because it would let every error pass."""
    costs = {precision: Rounding(**stated[precision]) for precision in LIMITS}
    for precision, cost in costs.items():
        for what, moved, values in (("features", cost.features, features), ("logits", cost.head_logits, logits)):
            largest = float(np.abs(values).max())
            if not moved <= largest:
                raise ValueError(f"rounding to {precision} moves its {what} by {moved:g}, and none is over {largest:g}")
    return costs


def _texts(array: npt.NDArray[Any]) -> list[str]:
    if array.dtype.kind != "U" or array.ndim != 1:
        raise ValueError(f"its names are {array.dtype} {array.shape}, expected a list of texts")
    return array.tolist()  # type: ignore[no-any-return]


def _numbers(array: npt.NDArray[Any]) -> Float32:
    if array.dtype != np.float32:
        raise ValueError(f"its numbers are {array.dtype}, expected float32")
    if not np.isfinite(array).all():
        raise ValueError("its numbers are not all finite")
    return array


def _check_size(path: Path) -> None:
    """Refuse a file whose arrays unpack to over 100 times its size. Features of clips never shrink that much."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > 100 * path.stat().st_size + (1 << 20):
        raise ValueError(f"it claims {claimed} bytes of content")
