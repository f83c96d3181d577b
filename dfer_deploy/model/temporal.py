"""The temporal model: a few transformer layers over a learned class token and the frames' features.

Paper, section 3.2, equations 1–3; upstream file ``models/Temporal_Model.py``, class ``Temporal_Transformer_Cls``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfer_deploy.specs import TemporalSpec


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, L]. Queries, keys and values have no bias."""

    def __init__(self, dim: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width
        self.to_qkv = nn.Linear(dim, 3 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.to_qkv(x).view(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # scale head_width ** -0.5
        return self.to_out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TemporalBlock(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)), with the tanh approximation of GELU."""

    def __init__(self, dim: int, spec: TemporalSpec) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = Attention(dim, spec.heads, spec.head_width)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, spec.mlp_width)
        self.mlp_out = nn.Linear(spec.mlp_width, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x)), approximate="tanh"))  # type: ignore[no-any-return]


class TemporalTransformer(nn.Module):
    """Frame features to one video feature: the class token after ``depth`` ≥ 1 blocks, without a final LayerNorm."""

    def __init__(self, dim: int, spec: TemporalSpec) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, spec.max_frames + 1, dim))
        self.blocks = nn.ModuleList(TemporalBlock(dim, spec) for _ in range(spec.depth))

    def forward(self, frame_features: Tensor) -> Tensor:
        """Convert frame features [B, T, L], 1 ≤ T ≤ 16, to video features [B, L], not normalised."""
        cls_token = self.cls_token.expand(frame_features.shape[0], -1, -1)
        x = torch.cat([cls_token, frame_features], dim=1)
        x = x + self.pos_embedding[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


class TemporalMean(nn.Module):
    """Depth 0: the mean over frames, without parameters. This is the paper's ablation without a temporal model."""

    def forward(self, frame_features: Tensor) -> Tensor:
        """Convert frame features [B, T, L] to video features [B, L]."""
        return frame_features.mean(dim=1)


def build_temporal_net(dim: int, spec: TemporalSpec) -> TemporalTransformer | TemporalMean:
    """Build the temporal model of ``spec.depth`` layers over features of ``dim`` dimensions."""
    return TemporalTransformer(dim, spec) if spec.depth else TemporalMean()
