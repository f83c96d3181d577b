"""Recovery of a model's spec and parameters from a checkpoint of the reference implementation.

Upstream: github.com/zengqunzhao/DFER-CLIP, files ``main.py`` (what is saved), ``models/Generate_Model.py`` (names).
Sizes follow from shapes, as in OpenAI CLIP's ``build_model``. Class texts follow from the rows of ``token_suffix``,
which are copies of rows of the token embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dfer_deploy.checkpoints.class_names import names_for_texts
from dfer_deploy.errors import CheckpointError
from dfer_deploy.model.prompts import END_OF_TEXT, text_from_tokens
from dfer_deploy.specs import ClipSpec, ModelSpec, PromptPosition, PromptSpec, TemporalSpec, TextSpec, VisionSpec

State = Mapping[str, Tensor]

_CLIP_HEAD_WIDTH = 64
_TEMPORAL_HEAD_WIDTH = 64
_UNKNOWN = -1

_TEMPORAL_NAMES = {
    "0.fn.norm": "norm_attention",
    "0.fn.fn.to_qkv": "attention.to_qkv",
    "0.fn.fn.to_out.0": "attention.to_out",
    "1.fn.norm": "norm_mlp",
    "1.fn.fn.net.0": "mlp_in",
    "1.fn.fn.net.3": "mlp_out",
}
_TEMPORAL_KEY = re.compile(r"temporal_net\.temporal_transformer\.layers\.(\d+)\.(.+)\.(weight|bias)")


def is_reference_state(state: State) -> bool:
    """Check whether tensors have the reference implementation's names (without ``module.``)."""
    return "prompt_learner.ctx" in state and "image_encoder.conv1.weight" in state


def state_from_reference(
    path: Path, state: State, position: PromptPosition, class_names: Sequence[str] | None
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Recover the spec, and the parameters by the names of ``DferClip``.

    Args:
        path: path of the file, for messages.
        state: tensors by the reference's names, without ``module.``.
        position: position of the contexts, which the file does not store.
        class_names: class names, which the file does not store; None for the released names.

    Raises:
        DferDeployError: a tensor is missing, or the tensors do not fit each other.
    """
    try:
        spec = _spec(path, state, position, class_names)
        parameters = _parameters(state, spec.temporal.depth)
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path} lacks the tensor {error.args[0]!r} or it has too few dimensions; expected every tensor of the "
            "reference implementation's DFER-CLIP"
        ) from error
    return spec, parameters


def _spec(path: Path, state: State, position: PromptPosition, class_names: Sequence[str] | None) -> ModelSpec:
    ctx = state["prompt_learner.ctx"]
    suffix = state["prompt_learner.token_suffix"]
    if ctx.ndim not in (2, 3) or suffix.ndim != 3:
        raise CheckpointError(
            f"{path} has contexts of shape {list(ctx.shape)} and token_suffix of shape {list(suffix.shape)}, "
            "expected [C, M, D] or [M, D] and [C, 76 - M, D]; is it a DFER-CLIP checkpoint?"
        )
    embedding = state["clip_model_.token_embedding.weight"]
    texts = [text_from_tokens(tokens) for tokens in _suffix_tokens(path, suffix, embedding)]
    if class_names is not None and len(class_names) != len(texts):
        raise CheckpointError(
            f"{len(class_names)} class names given ({', '.join(class_names)}), {path} has {len(texts)} classes; "
            "give one name for each, in the order that inspect shows"
        )
    return ModelSpec(
        prompts=PromptSpec(
            class_names=tuple(class_names or names_for_texts(texts)),
            class_texts=tuple(texts),
            contexts=ctx.shape[-2],
            class_specific=ctx.ndim == 3,
            position=position,
        ),
        clip=ClipSpec(
            vision=_vision(path, state),
            text=_text(state),
            embed_dim=state["image_encoder.proj"].shape[1],
        ),
        temporal=_temporal(path, state),
    )


def _vision(path: Path, state: State) -> VisionSpec:
    conv1 = state["image_encoder.conv1.weight"]
    positions = state["image_encoder.positional_embedding"].shape[0] - 1
    width, patch_size = conv1.shape[0], conv1.shape[-1]
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise CheckpointError(f"{path} has {positions} patch positions, expected a square number; is it a ViT?")
    return VisionSpec(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        layers=_count(state, r"image_encoder\.transformer\.resblocks\.(\d+)\."),
        head_width=_CLIP_HEAD_WIDTH,
        mlp_ratio=state["image_encoder.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
    )


def _text(state: State) -> TextSpec:
    width = state["text_encoder.ln_final.weight"].shape[0]
    return TextSpec(
        context_length=state["text_encoder.positional_embedding"].shape[0],
        vocab_size=state["clip_model_.token_embedding.weight"].shape[0],
        width=width,
        layers=_count(state, r"text_encoder\.transformer\.resblocks\.(\d+)\."),
        heads=width // _CLIP_HEAD_WIDTH,
    )


def _temporal(path: Path, state: State) -> TemporalSpec:
    depth = _count(state, r"temporal_net\.temporal_transformer\.layers\.(\d+)\.")
    if depth == 0:
        if any(name.startswith("temporal_net.") for name in state):
            raise CheckpointError(
                f"{path} has a class token but no temporal layer, so it answers every clip alike; expected at least one"
            )
        return TemporalSpec(depth=0)
    layer = "temporal_net.temporal_transformer.layers.0."
    return TemporalSpec(
        depth=depth,
        heads=state[layer + "0.fn.fn.to_qkv.weight"].shape[0] // (3 * _TEMPORAL_HEAD_WIDTH),
        head_width=_TEMPORAL_HEAD_WIDTH,
        mlp_width=state[layer + "1.fn.fn.net.0.weight"].shape[0],
        max_frames=state["temporal_net.pos_embedding"].shape[1] - 1,
    )


def _suffix_tokens(path: Path, suffix: Tensor, embedding: Tensor) -> list[list[int]]:
    """Token ids of every class text, found by looking up the rows of ``token_suffix`` [C, 76 - M, D] bit for bit."""
    ids: dict[bytes, int] = {}
    for token, row in enumerate(embedding.numpy()):
        ids.setdefault(row.tobytes(), token)
    texts = []
    for k, rows in enumerate(suffix.to(embedding.dtype).numpy()):
        tokens = []
        for row in rows:
            token = ids.get(row.tobytes(), _UNKNOWN)
            if token == _UNKNOWN:
                raise CheckpointError(
                    f"{path} has a token in the prompt of class {k} that is not a row of its token embedding, so the "
                    "class texts cannot be recovered; was the token embedding changed after the prompts were made?"
                )
            if token == END_OF_TEXT:
                break
            tokens.append(token)
        else:
            raise CheckpointError(f"{path} has a prompt of class {k} without an end; is it a DFER-CLIP checkpoint?")
        texts.append(tokens)
    return texts


def _parameters(state: State, depth: int) -> dict[str, Tensor]:
    parameters = {
        "prompt_learner.ctx": state["prompt_learner.ctx"],
        "text_encoder.token_embedding.weight": state["clip_model_.token_embedding.weight"],
    }
    for name, tensor in state.items():
        if name.startswith(("text_encoder.", "image_encoder.")):
            parameters[name] = tensor
        elif match := _TEMPORAL_KEY.fullmatch(name):
            layer, part, kind = match.groups()
            parameters[f"temporal_net.blocks.{layer}.{_TEMPORAL_NAMES[part]}.{kind}"] = tensor
    if depth:
        for name in ("temporal_net.cls_token", "temporal_net.pos_embedding"):
            parameters[name] = state[name]
    return parameters


def _count(state: State, pattern: str) -> int:
    """The number of distinct layer numbers among the names."""
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})
