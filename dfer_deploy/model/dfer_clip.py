"""DFER-CLIP: CLIP's image encoder on every frame, a temporal transformer, and text features instead of a classifier.

Zhao and Patras, "Prompting Visual-Language Models for Dynamic Facial Expression Recognition", BMVC 2023, figure 1;
upstream file ``models/Generate_Model.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from dfer_deploy.errors import CheckpointError
from dfer_deploy.model.clip import build_clip
from dfer_deploy.model.prompts import PromptLearner, TextEncoder
from dfer_deploy.model.temporal import build_temporal_net
from dfer_deploy.specs import ModelSpec, PromptPosition


class DferClip(nn.Module):
    """The model of the paper. Image encoder f, temporal model g and contexts are trainable; text encoder h is frozen.

    p(class k | video) is proportional to exp(cos(v, t_k) / τ), with v = g(f(x_1) … f(x_T)) and t_k = h(prompt k).

    The paper compares this model with two other classifiers (``ModelSpec.classifier``): a linear layer ``head`` on v,
    and texts t_k that also depend on v (Co-CoOp).
    """

    def __init__(self, spec: ModelSpec, clip: CLIP | None = None) -> None:
        """Build the model.

        Args:
            spec: all sizes and texts.
            clip: backbone with the sizes of ``spec.clip``; by default one with random weights.
        """
        super().__init__()
        clip = build_clip(spec.clip) if clip is None else clip
        self.spec = spec
        self.image_encoder = clip.visual
        self.temporal_net = build_temporal_net(spec.clip.embed_dim, spec.temporal)
        self.text_encoder = TextEncoder(clip)
        self.prompt_learner = PromptLearner(
            spec.prompts,
            self.text_encoder.token_embedding,
            spec.clip.text.context_length,
            image_features=spec.clip.embed_dim if spec.classifier == "image_conditioned_text" else None,
        )
        self.head = nn.Linear(spec.clip.embed_dim, spec.prompts.num_classes) if spec.classifier == "linear" else None
        self._kept_text: tuple[tuple[object, ...], Tensor] | None = None

    def encode_frames(self, images: Tensor) -> Tensor:
        """Encode images, float [B, T, 3, H, W] in [0, 1] (no CLIP mean and std), to frame features [B, T, L]."""
        batch, time = images.shape[:2]
        return self.image_encoder(images.flatten(0, 1)).unflatten(0, (batch, time))  # type: ignore[no-any-return]

    def encode_text(self, position: PromptPosition | None = None) -> Tensor:
        """Encode the class texts to text features t [C, L] of unit length.

        While the contexts are trained, the features are computed on every call. Otherwise they are computed once, in
        fp32, and kept until a weight of the text side changes.

        Args:
            position: overrides the position of the contexts.

        Raises:
            DferDeployError: the text features depend on the clip (Co-CoOp), or the classifier is a linear layer.
        """
        if self.spec.classifier != "text":
            raise CheckpointError(
                f"the classifier of this model is {self.spec.classifier!r}, which has no text features of its own; "
                "expected 'text'"
            )
        if torch.is_grad_enabled() and self.prompt_learner.ctx.requires_grad and self.spec.prompts.contexts:
            return self._text_features(position)
        weights = (*self.text_encoder.parameters(), self.prompt_learner.ctx)
        state = (position, *((w.data_ptr(), None if w.is_inference() else w._version) for w in weights))
        if self._kept_text is None or self._kept_text[0] != state:
            # Outside of inference mode and autocast, because training may use the tensor after an evaluation.
            device = self.prompt_learner.ctx.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                self._kept_text = state, self._text_features(position)
        return self._kept_text[1]

    def classify(self, frame_features: Tensor, position: PromptPosition | None = None) -> Tensor:
        """Classify frame features [B, T, L], 1 ≤ T ≤ 16, to logits [B, C]: fp32 also within ``torch.autocast``.

        Args:
            frame_features: features from the image encoder.
            position: overrides the position of the prompts' contexts; a linear layer ignores it.
        """
        video = self.temporal_net(frame_features)
        if self.head is not None:
            with torch.autocast(video.device.type, enabled=False):
                return self.head(video.float())  # type: ignore[no-any-return]
        video = F.normalize(video, dim=-1)
        if self.spec.classifier == "image_conditioned_text":
            text = self._text_features(position, video)  # [B, C, L]
        else:
            text = self.encode_text(position)
        with torch.autocast(video.device.type, enabled=False):
            cosines: Tensor = (text.float() @ video.float().unsqueeze(-1)).squeeze(-1)
            return cosines / self.spec.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Convert images, float [B, T, 3, H, W] in [0, 1], to logits [B, C]."""
        return self.classify(self.encode_frames(images))

    def _text_features(self, position: PromptPosition | None, video: Tensor | None = None) -> Tensor:
        """Text features of unit length: [C, L], or [B, C, L] with contexts that ``video`` [B, L] shifts."""
        prompts = self.prompt_learner(self.text_encoder.token_embedding, position, video)
        return F.normalize(self.text_encoder(prompts, self.prompt_learner.end_of_text), dim=-1)


def images_from_frames(frames: Tensor) -> Tensor:
    """Convert frames, uint8 [B, T, H, W, 3], to images, float32 [B, T, 3, H, W] in [0, 1]."""
    return frames.to(torch.float32).div(255).permute(0, 1, 4, 2, 3)
