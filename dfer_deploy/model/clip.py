"""The CLIP backbone, built by open_clip with the sizes of a spec."""

from __future__ import annotations

import difflib
import logging
from typing import Any

import open_clip
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from dfer_deploy.console import step
from dfer_deploy.errors import CheckpointError
from dfer_deploy.specs import ClipSpec, TextSpec, VisionSpec

_VISION_KEYS = {"layers", "width", "patch_size", "image_size", "head_width", "mlp_ratio"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}
_TOP_KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}


def build_clip(spec: ClipSpec) -> CLIP:
    """Build an open_clip ``CLIP`` with random weights and the sizes of ``spec``, in fp32."""
    vision = CLIPVisionCfg(
        layers=spec.vision.layers,
        width=spec.vision.width,
        head_width=spec.vision.head_width,
        mlp_ratio=spec.vision.mlp_ratio,
        patch_size=spec.vision.patch_size,
        image_size=spec.vision.image_size,
    )
    text = CLIPTextCfg(
        context_length=spec.text.context_length,
        vocab_size=spec.text.vocab_size,
        width=spec.text.width,
        heads=spec.text.heads,
        layers=spec.text.layers,
    )
    return CLIP(spec.embed_dim, vision, text, quick_gelu=spec.quick_gelu)


def clip_spec_from_open_clip(name: str) -> ClipSpec:
    """Read the sizes of an open_clip model from its name, for example ``ViT-B-32-quickgelu``.

    Raises:
        DferDeployError: the name is unknown to open_clip, or the model is not a plain CLIP with a vision transformer.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise CheckpointError(
            f"open_clip knows no model {name!r}; expected one of open_clip.list_models(), such as ViT-B-32-quickgelu"
        )
    vision, text = config["vision_cfg"], config["text_cfg"]
    foreign = (set(config) - _TOP_KEYS) | (set(vision) - _VISION_KEYS) | (set(text) - _TEXT_KEYS)
    if foreign or isinstance(vision["layers"], list):
        raise CheckpointError(
            f"open_clip's {name!r} is not a plain CLIP vision transformer "
            f"({', '.join(sorted(foreign)) or 'it is a ResNet'}); choose one such as ViT-B-32-quickgelu or ViT-L-14"
        )
    return ClipSpec(
        vision=VisionSpec(**_defined(vision)),
        text=TextSpec(**_defined(text)),
        embed_dim=config["embed_dim"],
        quick_gelu=config.get("quick_gelu", False),
    )


def pretrained_clip(name: str, tag: str) -> CLIP:
    """Load an open_clip model with trained weights, in fp32. The first time, open_clip downloads them.

    Args:
        name: open_clip's name of the model.
        tag: open_clip's name of the weights, such as ``openai``.

    Raises:
        DferDeployError: open_clip does not know these weights of the model, they cannot be downloaded, or they were
            trained with QuickGELU although the model computes GELU.
    """
    spec = clip_spec_from_open_clip(name)
    known = open_clip.list_pretrained_tags_by_model(name)
    if tag not in known:
        near = difflib.get_close_matches(tag, known, n=1)
        hint = f"did you mean {near[0]!r}" if near else f"it knows {', '.join(known) or 'none'}"
        raise CheckpointError(f"open_clip knows no weights {tag!r} of {name!r} ({hint}); a file's name ends in .pt")
    if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False) and not spec.quick_gelu:
        raise CheckpointError(
            f"the weights {tag!r} were trained with QuickGELU, unlike {name!r}; expected open_clip = '{name}-quickgelu'"
        )
    logging.disable(logging.ERROR)  # without a network huggingface_hub logs two lines for each of its five attempts
    try:
        with step(f"load the weights {tag} of {name}"):
            return open_clip.create_model(name, pretrained=tag, precision="fp32", device="cpu")
    except Exception as error:  # open_clip lets urllib's, huggingface_hub's and its own RuntimeErrors through
        reason = str(error).strip().splitlines()[0].split(". ")[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"the weights {tag!r} of {name!r} could not be loaded ({reason}); "
            "they need an internet connection the first time, or give the path of a weight file"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _defined(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
