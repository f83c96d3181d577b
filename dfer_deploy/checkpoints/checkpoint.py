"""Checkpoints in dfer-deploy's own format and in that of the reference implementation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dfer_deploy import __version__
from dfer_deploy.checkpoints.reference_checkpoint import is_reference_state, state_from_reference
from dfer_deploy.checkpoints.safe_pickle import load_tensors
from dfer_deploy.checkpoints.weight_file import is_torch_file
from dfer_deploy.errors import CheckpointError, spelled
from dfer_deploy.files import atomic_file
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import ModelSpec, PromptPosition, require

FORMAT = "dfer-deploy-checkpoint/1"

FRAME_INTERVAL = "model_frame_interval_s"
"""Key in the provenance. It is not ``frame_interval_s``, which is the interval of the clips' folders in older files."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and checked.

    Attributes:
        path: path of the file.
        format: ``dfer-deploy`` for dfer-deploy's own format, ``reference`` for the reference implementation's.
        spec: specification of the model.
        state: parameters by the names of ``DferClip``. The tensors are mapped from the file.
        best_acc: WAR in percent that the reference implementation measured on its test list; None if not stated.
        provenance: record of the trainer; for a reference file, the epoch if stated.
    """

    path: Path
    format: Literal["dfer-deploy", "reference"]
    spec: ModelSpec
    state: Mapping[str, Tensor]
    best_acc: float | None
    provenance: Mapping[str, Any]

    @property
    def frame_interval_s(self) -> float | None:
        """Seconds between the 16 frames that the model saw of the median training clip; None if unknown."""
        interval = self.provenance.get(FRAME_INTERVAL)
        return float(interval) if isinstance(interval, int | float) and math.isfinite(interval) else None

    def build_model(self) -> DferClip:
        """Build the model in fp32 on the CPU, in evaluation mode.

        Raises:
            DferDeployError: parameters are missing, unexpected, of the wrong shape, or not finite.
        """
        for name, tensor in self.state.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"{self.path} has numbers that are not finite in {name!r} (shape {list(tensor.shape)}); "
                    "copy it again, or train it again"
                )
        # On the device "meta" the model takes no memory; its parameters become the tensors mapped from the file.
        with torch.device("meta"):
            model = DferClip(self.spec).eval()
        try:
            model.load_state_dict({name: tensor.float() for name, tensor in self.state.items()}, assign=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
            raise CheckpointError(
                f"{self.path} does not hold the parameters of the model that it describes "
                f"({lines[0] if lines else error}); is it a DFER-CLIP checkpoint?"
            ) from error
        return model


def load_checkpoint(
    path: Path, *, prompt_position: PromptPosition | None = None, class_names: Sequence[str] | None = None
) -> Checkpoint:
    """Read a checkpoint without executing anything from it.

    Args:
        path: a file in dfer-deploy's own format or in the reference implementation's.
        prompt_position: position of the contexts, which a reference file does not store; by default ``end``.
        class_names: class names in the order of the logits. A reference file does not store them; by default, the
            released names are used for the released class texts.

    Raises:
        DferDeployError: the file is refused, damaged or not a DFER-CLIP checkpoint, or it states another
            ``prompt_position``.
    """
    require(not isinstance(class_names, str), f"class_names is {class_names!r}, expected a tuple of names")
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a DFER-CLIP checkpoint")
    if isinstance(content.get("format"), str) and content["format"].startswith("dfer-deploy-checkpoint/"):
        checkpoint = _own(path, content)
        if prompt_position not in (None, checkpoint.spec.prompts.position):
            raise CheckpointError(
                f"{path} says itself that its contexts stand at the {checkpoint.spec.prompts.position!r}, "
                f"not the {prompt_position!r}; omit {spelled('prompt_position')}"
            )
        if class_names:
            prompts = replace(checkpoint.spec.prompts, class_names=tuple(class_names))
            return replace(checkpoint, spec=replace(checkpoint.spec, prompts=prompts))
        return checkpoint
    return _reference(path, content, prompt_position or "end", class_names)


def holds_dfer_clip(path: Path) -> bool:
    """Check whether a weight file is a DFER-CLIP checkpoint, in either format.

    Raises:
        DferDeployError: the file is neither safetensors nor TorchScript, and it is refused or damaged.
    """
    if not is_torch_file(path):
        return False
    content = load_tensors(path)
    if not isinstance(content, dict):
        return False
    state = content.get("state_dict", content)
    names = {str(name).removeprefix("module.") for name in state} if isinstance(state, dict) else set()
    return isinstance(content.get("format"), str) or "prompt_learner.ctx" in names


def save_checkpoint(path: Path, model: DferClip, provenance: Mapping[str, Any]) -> None:
    """Write a checkpoint in dfer-deploy's own format, atomically, which ``weights_only=True`` can load.

    Args:
        path: the file to write; an existing file is replaced.
        model: the model whose spec and parameters are written, the parameters in fp32.
        provenance: record of the training: plain dictionaries, lists, strings and numbers.

    Raises:
        DferDeployError: the file cannot be written.
    """
    state = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.state_dict().items()}
    content = {
        "format": FORMAT,
        "tool": f"dfer-deploy {__version__}",
        "spec": model.spec.to_dict(),
        "provenance": dict(provenance),
        "state_dict": state,
    }
    with atomic_file(path) as temporary, _full_disk(path):
        torch.save(content, temporary)


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Translate torch's error for a full disk, a RuntimeError about the position in the file."""
    try:
        yield
    except RuntimeError as error:
        raise CheckpointError(f"cannot write {path} ({error}); nothing was left behind, free some space") from error


def _own(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has the format {content['format']!r}, this version reads {FORMAT!r}; upgrade")
    spec = spec_from_dict(ModelSpec, content.get("spec"))
    provenance = content.get("provenance")
    return Checkpoint(
        path=path,
        format="dfer-deploy",
        spec=spec,
        state=_tensors(path, content.get("state_dict")),
        best_acc=None,
        provenance=provenance if isinstance(provenance, dict) else {},
    )


def _reference(
    path: Path, content: Mapping[str, Any], position: PromptPosition, class_names: Sequence[str] | None
) -> Checkpoint:
    state = _tensors(path, content.get("state_dict", content))
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if not is_reference_state(state):
        raise CheckpointError(
            f"{path} is not a DFER-CLIP checkpoint (no image_encoder and prompt_learner among its {len(state)} "
            f"tensors, the first is {next(iter(state), 'absent')!r}); expected a file that the reference "
            "implementation or dfer-deploy train wrote"
        )
    spec, parameters = state_from_reference(path, state, position, class_names)
    best_acc = content.get("best_acc")
    if isinstance(best_acc, Tensor) and best_acc.numel() == 1:
        best_acc = float(best_acc)
    epoch = content.get("epoch")
    return Checkpoint(
        path=path,
        format="reference",
        spec=spec,
        state=parameters,
        best_acc=float(best_acc) if isinstance(best_acc, int | float) and 0 < best_acc <= 100 else None,
        provenance={"epoch": epoch} if isinstance(epoch, int) else {},
    )


def _tensors(path: Path, state: object) -> dict[str, Tensor]:
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors under 'state_dict'; expected a DFER-CLIP checkpoint")
    for name, tensor in tensors.items():
        # A tensor with stride 0 would claim more memory than the file has.
        stored = tensor.layout is torch.strided and tensor.is_floating_point()
        if not stored or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path} has the tensor {name!r} of type {tensor.dtype} and shape {list(tensor.shape)}, expected "
                "stored floating-point numbers; is it a DFER-CLIP checkpoint?"
            )
    return tensors
