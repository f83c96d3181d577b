"""DFER-CLIP: CLIP's image encoder on every frame, a temporal transformer, and text features instead of a classifier.

Zhao and Patras, "Prompting Visual-Language Models for Dynamic Facial Expression Recognition", BMVC 2023, figure 1;
upstream file ``models/Generate_Model.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from dfer_deploy.model.clip import build_clip
from dfer_deploy.model.prompts import PromptLearner, TextEncoder
from dfer_deploy.model.temporal import build_temporal_net
from dfer_deploy.specs import ModelSpec, PromptPosition


class DferClip(nn.Module):
    """The model of the paper. Trainable: image encoder f, temporal model g, contexts p; the text encoder h is frozen.

    p(class k | video) is proportional to exp(cos(v, t_k) / τ), with v = g(f(x_1) … f(x_T)) and t_k = h(prompt k).
    """

    def __init__(self, spec: ModelSpec, clip: CLIP | None = None) -> None:
        """Builds the model.

        Args:
            spec: all sizes and texts.
            clip: the backbone, of the sizes in ``spec.clip``; by default one with random weights.
        """
        super().__init__()
        clip = build_clip(spec.clip) if clip is None else clip
        self.spec = spec
        self.image_encoder = clip.visual
        self.temporal_net = build_temporal_net(spec.clip.embed_dim, spec.temporal)
        self.text_encoder = TextEncoder(clip)
        self.prompt_learner = PromptLearner(
            spec.prompts, self.text_encoder.token_embedding, spec.clip.text.context_length
        )

    def encode_frames(self, images: Tensor) -> Tensor:
        """Images, float [B, T, 3, H, W] in [0, 1] (no CLIP mean and std), to frame features [B, T, L]."""
        batch, time = images.shape[:2]
        return self.image_encoder(images.flatten(0, 1)).unflatten(0, (batch, time))  # type: ignore[no-any-return]

    def encode_video(self, frame_features: Tensor) -> Tensor:
        """Frame features [B, T, L] to video features v [B, L] of unit length."""
        return F.normalize(self.temporal_net(frame_features), dim=-1)

    def encode_text(self, position: PromptPosition | None = None) -> Tensor:
        """Text features t [C, L] of unit length; ``position`` overrides where the contexts stand."""
        prompts = self.prompt_learner(self.text_encoder.token_embedding, position)
        return F.normalize(self.text_encoder(prompts, self.prompt_learner.end_of_text), dim=-1)

    def logits(self, video_features: Tensor, text_features: Tensor) -> Tensor:
        """cos(v, t) / τ: video features [B, L] and text features [C, L], both of unit length, to logits [B, C]."""
        return video_features @ text_features.T / self.spec.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Images, float [B, T, 3, H, W] in [0, 1], to logits [B, C]."""
        return self.logits(self.encode_video(self.encode_frames(images)), self.encode_text())


def images_from_frames(frames: Tensor) -> Tensor:
    """Frames, uint8 [B, T, H, W, 3], to images, float32 [B, T, 3, H, W] in [0, 1]."""
    return frames.to(torch.float32).div(255).permute(0, 1, 4, 2, 3)
