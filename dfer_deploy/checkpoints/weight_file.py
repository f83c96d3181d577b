"""Reading of CLIP's weights from a file. A program is run only if it is one that OpenAI published."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP
from torch import Tensor

from dfer_deploy.checkpoints.safe_pickle import load_tensors, unreadable
from dfer_deploy.errors import CheckpointError
from dfer_deploy.files import sha256_of_file
from dfer_deploy.model.clip import build_clip
from dfer_deploy.specs import ClipSpec

_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Entries of OpenAI's archives that are not weights."""


def clip_from_file(spec: ClipSpec, path: Path) -> CLIP:
    """Build a CLIP with the weights of a file, in fp32.

    Args:
        spec: sizes of the model. Weights are not resized.
        path: one of

            - a ``.safetensors`` file.
            - a state dictionary that ``torch.save`` wrote, alone or under ``state_dict``, as open_clip's trainer saves
              it.
            - one of OpenAI's TorchScript archives, such as ``ViT-B-32.pt``. An archive is a program, so it is opened
              only if its SHA-256 is a published one.

    Raises:
        DferDeployError: the file is refused or damaged, or its weights do not fit the sizes.
    """
    state = _state(path)
    clip = build_clip(spec)
    expected = clip.state_dict()
    for name, tensor in expected.items():
        if name in state and tuple(state[name].shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"{path} has {name!r} of shape {list(state[name].shape)}, the recipe's backbone {list(tensor.shape)}; "
                "name the model that the weights are of"
            )
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or foreign:
        which = f"lacks {missing[0]!r}" if missing else f"holds {foreign[0]!r}"
        raise CheckpointError(
            f"{path} {which}, so it does not fit the recipe's backbone; expected the weights of that CLIP and no others"
        )
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} has numbers that are not finite in {name!r}; copy it again")
    clip.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return clip


def is_torch_file(path: Path) -> bool:
    """Check whether a file is read with ``safe_pickle.load_tensors``: neither safetensors nor TorchScript."""
    return path.suffix != ".safetensors" and not _is_torchscript(path)


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"model.pretrained names {str(path)!r}, which is not a file; expected weights of CLIP")
    if path.suffix == ".safetensors":
        content: object = _safetensors(path)
    elif _is_torchscript(path):
        content = _openai_archive(path)
    else:
        content = load_tensors(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), Mapping):
        content = dict(content["state_dict"])
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a state dictionary of CLIP")
    tensors = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {
        name: value.reshape(()) if name == "logit_scale" and value.numel() == 1 else value
        for name, value in tensors.items()
        if isinstance(value, Tensor) and name not in _NO_WEIGHTS
    }


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        with contextlib.suppress(OSError):  # a file system that cannot map files
            return load_file(path)
        return load(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file or is damaged ({error}); copy it again") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _openai_archive(path: Path) -> dict[str, Tensor]:
    found = sha256_of_file(path)
    if found not in openai_digests():
        raise CheckpointError(
            f"{path} is a TorchScript archive, which is a program, and its SHA-256 {found[:12]}… is none of those that "
            "OpenAI published; download it again, or save its state_dict with torch.save where you trust it"
        )
    return dict(torch.jit.load(str(path), map_location="cpu").state_dict())  # type: ignore[no-untyped-call]


def openai_digests() -> set[str]:
    """Read the SHA-256 of OpenAI's archives from their addresses in open_clip's table."""
    addresses = (open_clip.get_pretrained_cfg(name, "openai").get("url", "") for name in open_clip.list_models())
    return {digest for address in addresses for digest in re.findall(r"/([0-9a-f]{64})/", address)}
