"""The model as two graphs for serving. The model itself is left unchanged.

Each graph is a module that computes what ``DferClip`` computes, written with the fewest operators that the mathematics
needs and with explicit precision. Matrix products, their weights and CLIP's activation are fp32 or fp16, chosen for
each block (``bundles.blocks``). The residual streams, LayerNorm, the temporal GELU, normalisation and logits are always
fp32. TensorRT 11 takes precision from the graph alone.

Inside the blocks the tokens of all sequences are the rows of one matrix, [N · S, W], because onnxruntime fuses a
product and its bias into one operator for matrices only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfer_deploy.errors import CheckpointError, spelled
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.model.temporal import TemporalBlock, TemporalTransformer
from dfer_deploy.specs import Precision

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class _Place:
    """A part of a graph whose matrix products have one type; see ``dfer_deploy.bundles.blocks`` for the names."""

    name: str
    dtype: torch.dtype


class _Linear(nn.Module):
    """x @ W + b in the graph's precision. The weight is stored as [in, out], so that no transpose is needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, place: _Place) -> None:
        super().__init__()
        self.weight = _constant(weight.T, place.dtype, place.name)
        self.bias = None if bias is None else _constant(bias, place.dtype, place.name)

    def forward(self, x: Tensor) -> Tensor:
        product = x.to(self.weight.dtype) @ self.weight
        return product if self.bias is None else product + self.bias


class _LayerNorm(nn.Module):
    """LayerNorm in fp32, whatever the precision of the graph."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = _constant(norm.weight, torch.float32)
        self.bias = _constant(norm.bias, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


class _Attention(nn.Module):
    """Self-attention over N sequences of S tokens, [N · S, W], without additions that the mathematics does not need.

    The scale is folded into the query projection. A key bias adds the same number to all scores of a query, which
    softmax ignores, so it is omitted. The weights of a softmax sum to 1, so the value bias passes through unchanged and
    is folded into the bias of the output.
    """

    def __init__(self, qkv_weight: Tensor, qkv_bias: Tensor | None, out: nn.Linear, heads: int, place: _Place) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = qkv_weight.shape[0] // (3 * heads)
        scale = self.head_width**-0.5
        query, key, value = qkv_weight.chunk(3)
        query_bias, _, value_bias = (None, None, None) if qkv_bias is None else qkv_bias.chunk(3)
        self.query = _Linear(query * scale, None if query_bias is None else query_bias * scale, place)
        self.key = _Linear(key, None, place)
        self.value = _Linear(value, None, place)
        self.out = _Linear(out.weight, out.bias if value_bias is None else out.bias + out.weight @ value_bias, place)

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        # x is cast once for the three products.
        x = x.to(self.query.weight.dtype)
        q = self._heads(self.query(x), tokens).transpose(1, 2)
        k = self._heads(self.key(x), tokens).permute(0, 2, 3, 1)
        v = self._heads(self.value(x), tokens).transpose(1, 2)
        attended = torch.softmax(q @ k, dim=-1) @ v
        return cast(Tensor, self.out(attended.transpose(1, 2).reshape(-1, self.heads * self.head_width)))

    def _heads(self, x: Tensor, tokens: int) -> Tensor:
        return x.reshape(-1, tokens, self.heads, self.head_width)


class _VisionBlock(nn.Module):
    """A residual attention block of CLIP's vision transformer; the residual stream is fp32."""

    def __init__(self, block: nn.Module, heads: int, quick_gelu: bool, place: _Place) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.ln_1 = _LayerNorm(block.ln_1)  # type: ignore[arg-type]
        attention = cast(nn.MultiheadAttention, block.attn)
        self.attention = _Attention(attention.in_proj_weight, attention.in_proj_bias, attention.out_proj, heads, place)
        self.ln_2 = _LayerNorm(block.ln_2)  # type: ignore[arg-type]
        fully_connected, projection = (
            cast(nn.Linear, block.get_submodule(f"mlp.{name}")) for name in ("c_fc", "c_proj")
        )
        self.mlp_in = _Linear(fully_connected.weight, fully_connected.bias, place)
        self.mlp_out = _Linear(projection.weight, projection.bias, place)

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        x = x + self.attention(self.ln_1(x), tokens).float()
        hidden = self.mlp_in(self.ln_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
        return cast(Tensor, x + self.mlp_out(hidden).float())


class ImageEncoderGraph(nn.Module):
    """The graph from frames, uint8 [B, T, H, W, 3] in [0, 255], to frame features, fp32 [B, T, L], not normalised.

    The patch embedding is a convolution whose stride equals its kernel, so it is written as a matrix product, which
    reads the frames in the layout in which they arrive.
    """

    def __init__(self, model: DferClip, precision: Precision, keep_fp32: Collection[str] = ()) -> None:
        super().__init__()
        vision, encoder = model.spec.clip.vision, model.image_encoder
        self.patch_size = vision.patch_size
        self.grid = vision.image_size // vision.patch_size
        conv1 = encoder.conv1.weight  # [width, 3, patch, patch]
        self.patch_embedding = _Linear(
            conv1.permute(0, 2, 3, 1).flatten(1), None, _place("patch_embedding", precision, keep_fp32)
        )
        positions = encoder.positional_embedding
        self.class_token = _constant((encoder.class_embedding + positions[0])[None, None], torch.float32)
        self.positions = _constant(positions[1:], torch.float32)
        self.ln_pre = _LayerNorm(encoder.ln_pre)
        self.blocks = nn.ModuleList(
            _VisionBlock(
                block, vision.heads, model.spec.clip.quick_gelu, _place(f"encoder.{index}", precision, keep_fp32)
            )
            for index, block in enumerate(encoder.transformer.resblocks)
        )
        self.ln_post = _LayerNorm(encoder.ln_post)
        self.projection = _Linear(encoder.proj.T, None, _place("projection", precision, keep_fp32))

    def forward(self, frames: Tensor) -> Tensor:
        batch, time = frames.shape[:2]
        # TensorRT accepts uint8 only as the input of a Cast, so the cast comes before the change of layout.
        pixels = (frames.float() / 255).to(self.patch_embedding.weight.dtype)
        patches = pixels.reshape(batch * time, self.grid, self.patch_size, self.grid, self.patch_size, 3)
        patches = patches.transpose(2, 3).reshape(batch * time, self.grid**2, self.patch_size**2 * 3)
        x = self.patch_embedding(patches).float() + self.positions
        tokens, width = 1 + self.grid**2, x.shape[-1]
        x = torch.cat([self.class_token.expand(batch * time, -1, -1), x], dim=1)
        x = self.ln_pre(x.reshape(-1, width))
        for block in self.blocks:
            x = block(x, tokens)
        x = x.reshape(-1, tokens, width)[:, 0]
        return cast(Tensor, self.projection(self.ln_post(x)).float().unflatten(0, (batch, time)))


class _TemporalBlock(nn.Module):
    """A block of the temporal transformer; the residual stream is fp32."""

    def __init__(self, block: TemporalBlock, place: _Place) -> None:
        super().__init__()
        attention = block.attention
        self.norm_attention = _LayerNorm(block.norm_attention)
        self.attention = _Attention(attention.to_qkv.weight, None, attention.to_out, attention.heads, place)
        self.norm_mlp = _LayerNorm(block.norm_mlp)
        self.mlp_in = _Linear(block.mlp_in.weight, block.mlp_in.bias, place)
        self.mlp_out = _Linear(block.mlp_out.weight, block.mlp_out.bias, place)

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        x = x + self.attention(self.norm_attention(x), tokens).float()
        # In fp16 the cube inside the tanh approximation overflows beyond |x| ≈ 40.
        hidden = F.gelu(self.mlp_in(self.norm_mlp(x)).float(), approximate="tanh")
        return cast(Tensor, x + self.mlp_out(hidden).float())


class TemporalHeadGraph(nn.Module):
    """The graph from frame features, fp32 [B, T, L], 1 ≤ T ≤ 16, to logits and probabilities, fp32 [B, C].

    The text features, divided by τ, are the weight of the last matrix product. It stays in fp32, because it multiplies
    an error of the cosine by 100. The product of a linear head, with its bias, stays in fp32 as well. A linear head
    takes the video feature as it is, not normalised.
    """

    def __init__(self, model: DferClip, precision: Precision, keep_fp32: Collection[str] = ()) -> None:
        super().__init__()
        temporal = model.temporal_net
        self.has_transformer = isinstance(temporal, TemporalTransformer)
        if isinstance(temporal, TemporalTransformer):
            positions = temporal.pos_embedding
            self.class_token = _constant(temporal.cls_token + positions[:, :1], torch.float32)
            self.positions = _constant(positions[:, 1:], torch.float32)
            self.blocks = nn.ModuleList(
                _TemporalBlock(cast(TemporalBlock, block), _place(f"head.{index}", precision, keep_fp32))
                for index, block in enumerate(temporal.blocks)
            )
        head = model.head
        classifier = model.encode_text().T / model.spec.temperature if head is None else head.weight.T  # [L, C]
        self.classifier = _constant(classifier, torch.float32)
        self.bias = None if head is None else _constant(head.bias, torch.float32)

    def forward(self, frame_features: Tensor) -> tuple[Tensor, Tensor]:
        if self.has_transformer:
            batch, time = frame_features.shape[:2]
            x = frame_features + self.positions[:, :time]
            x = torch.cat([self.class_token.expand(batch, -1, -1), x], dim=1)
            tokens, width = x.shape[1:]
            x = x.reshape(-1, width)
            for block in self.blocks:
                x = block(x, tokens)
            video_features = x.reshape(-1, tokens, width)[:, 0]
        else:
            video_features = frame_features.mean(dim=1)
        if self.bias is None:
            logits = F.normalize(video_features, dim=-1) @ self.classifier
        else:
            logits = video_features @ self.classifier + self.bias
        return logits, torch.softmax(logits, dim=-1)


def blocks_beyond_fp16(model: DferClip) -> tuple[str, ...]:
    """Return the names of the blocks with a weight that fp16 cannot represent, so that they must be fp32."""
    encoder, head = ImageEncoderGraph(model, "fp32"), TemporalHeadGraph(model, "fp32")
    blocks: dict[str, nn.Module] = {"patch_embedding": encoder.patch_embedding}
    blocks |= {f"encoder.{index}": block for index, block in enumerate(encoder.blocks)}
    blocks |= {"projection": encoder.projection}
    if head.has_transformer:
        blocks |= {f"head.{index}": block for index, block in enumerate(head.blocks)}
    return tuple(
        name
        for name, block in blocks.items()
        if not all(
            torch.isfinite(weight.to(torch.float16)).all()
            for linear in block.modules()
            if isinstance(linear, _Linear)
            for weight in linear.parameters()
        )
    )


def _place(name: str, precision: Precision, keep_fp32: Collection[str]) -> _Place:
    return _Place(name, torch.float32 if name in keep_fp32 else _DTYPES[precision])


def _constant(tensor: Tensor, dtype: torch.dtype, block: str = "") -> nn.Parameter:
    value = tensor.detach().to(dtype).contiguous()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"a weight of shape {list(tensor.shape)} is NaN or infinite; train it again")
    if not torch.isfinite(value).all():
        raise CheckpointError(
            f"a weight of {block}, of shape {list(tensor.shape)}, is too large for {dtype}; export with "
            f"{spelled('keep_fp32', (block,))} or {spelled('precision', 'fp32')}"
        )
    return nn.Parameter(value, requires_grad=False)
