"""The text side: tokenised class texts with learnable contexts around them (paper, section 3.3).

Upstream file ``models/Prompt_Learner.py``; the idea is CoOp's (Zhou et al., IJCV 2022).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from dfer_deploy.errors import CheckpointError
from dfer_deploy.specs import PromptPosition, PromptSpec

START_OF_TEXT = 49406
END_OF_TEXT = 49407


@functools.cache
def tokenizer() -> SimpleTokenizer:
    """Load CLIP's byte-pair tokenizer, which has 49,408 tokens. It is loaded once."""
    return SimpleTokenizer()


def class_tokens(text: str) -> list[int]:
    """Tokenise a class text, without start and end of text."""
    return list(tokenizer().encode(text))


def text_from_tokens(tokens: Sequence[int]) -> str:
    """Decode token ids to a text that gives the same ids when it is tokenised again.

    CLIP's vocabulary marks the ends of words but not the spaces, so the plain decoding has a space before every comma.
    The usual English spacing is restored if that does not change the tokens.

    Raises:
        DferDeployError: tokenising the decoded text gives other ids.
    """
    decoded = tokenizer().decode(list(tokens)).strip()
    spaced = re.sub(r"\s+([,.;:!?)\]])", r"\1", decoded)
    spaced = re.sub(r"([(\[])\s+", r"\1", spaced)
    spaced = re.sub(r"\s+('(?:s|t|re|ve|m|ll|d)\b)", r"\1", spaced)
    spaced = re.sub(r"(\w)\s+([-/])\s+(\w)", r"\1\2\3", spaced)
    for candidate in (spaced, decoded):
        if class_tokens(candidate) == list(tokens):
            return candidate
    raise CheckpointError(f"the tokens {list(tokens)} are no text that CLIP's tokenizer gives; was the file changed?")


class TextEncoder(nn.Module):
    """CLIP's text transformer, always frozen. A prompt's feature is read at its end of text.

    The attention is causal, so tokens after the longest prompt's end need not be computed. (The reference computes all
    77 tokens.)
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.causal_mask: Tensor
        self.register_buffer("causal_mask", _causal_mask(clip.context_length), persistent=False)
        self.requires_grad_(False)

    def forward(self, prompts: Tensor, end_of_text: Tensor) -> Tensor:
        """Encode prompt embeddings to text features, not normalised.

        Args:
            prompts: embeddings [..., C, N, D] of N ≤ 77 tokens. N includes the end of text of every prompt.
            end_of_text: index of each prompt's end of text, [C].

        Returns:
            Text features [..., C, L].
        """
        *batch, classes, tokens, _ = prompts.shape
        x = prompts.flatten(0, -3) + self.positional_embedding[:tokens]
        x = self.ln_final(self.transformer(x, attn_mask=self.causal_mask[:tokens, :tokens]))
        x = x.view(-1, classes, tokens, x.shape[-1])[:, torch.arange(classes, device=x.device), end_of_text]
        features: Tensor = x @ self.text_projection
        return features.view(*batch, classes, -1)


def _causal_mask(length: int) -> Tensor:
    # Always on the CPU, also when the model is built on the device "meta", which has no memory.
    return torch.full((length, length), float("-inf"), device="cpu").triu_(1)


class PromptLearner(nn.Module):
    """Learnable contexts: class-specific [C, M, D] or shared [M, D], inserted into the embedded class texts.

    The token ids are those of ``"X " * M + text``, and the contexts replace the M placeholders.

    With ``image_features``, a network of two layers (``meta_net``) computes a shift of all contexts from a clip's video
    feature: Co-CoOp, Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, equation 3.
    """

    def __init__(
        self,
        spec: PromptSpec,
        token_embedding: nn.Embedding,
        context_length: int,
        image_features: int | None = None,
    ) -> None:
        """Build the contexts.

        Args:
            spec: class texts and contexts.
            token_embedding: CLIP's token embedding, for its width D.
            context_length: largest number of tokens in a prompt, 77.
            image_features: L, the size of the video feature that shifts the contexts; None for contexts without shift.

        Raises:
            DferDeployError: a prompt has more than ``context_length`` tokens.
        """
        super().__init__()
        self.spec = spec
        width = token_embedding.embedding_dim
        shape = (spec.num_classes, spec.contexts, width) if spec.class_specific else (spec.contexts, width)
        self.ctx = nn.Parameter(torch.randn(shape) * 0.02)

        texts = [class_tokens(text) for text in spec.class_texts]
        self.text_lengths = [len(tokens) for tokens in texts]
        self.longest = 2 + spec.contexts + max(self.text_lengths)
        if self.longest > context_length:
            text = spec.class_texts[self.text_lengths.index(max(self.text_lengths))]
            raise CheckpointError(
                f"the prompt of {text!r} with {spec.contexts} contexts has {self.longest} tokens, CLIP reads at most "
                f"{context_length}; shorten the text or use fewer contexts"
            )
        padding = context_length - 1 - spec.contexts
        rows = [tokens + [END_OF_TEXT] + [0] * (padding - len(tokens) - 1) for tokens in texts]
        self.prefix_ids: Tensor
        self.suffix_ids: Tensor
        self.end_of_text: Tensor
        self.register_buffer(
            "prefix_ids", torch.full((spec.num_classes, 1), START_OF_TEXT, device="cpu"), persistent=False
        )
        self.register_buffer("suffix_ids", torch.tensor(rows, device="cpu"), persistent=False)
        ends = [1 + spec.contexts + length for length in self.text_lengths]
        self.register_buffer("end_of_text", torch.tensor(ends, device="cpu"), persistent=False)
        self.meta_net: nn.Sequential | None = None
        if image_features is not None:
            hidden = max(1, image_features // 16)
            self.meta_net = nn.Sequential(nn.Linear(image_features, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(
        self, token_embedding: nn.Embedding, position: PromptPosition | None = None, video: Tensor | None = None
    ) -> Tensor:
        """Embed the prompts: [C, N, D], or [B, C, N, D] with ``video``. N is the length of the longest prompt.

        Args:
            token_embedding: CLIP's token embedding.
            position: position of the contexts; by default that of the spec.
            video: video features [B, L] of unit length, from which ``meta_net`` computes the shift of the contexts.
        """
        tokens = torch.cat([self.prefix_ids, self.suffix_ids[:, : self.longest - 1 - self.spec.contexts]], dim=1)
        embedded = token_embedding(tokens)  # [C, N - M, D]
        ctx = self.ctx if self.spec.class_specific else self.ctx.expand(self.spec.num_classes, -1, -1)
        if video is not None:
            assert self.meta_net is not None  # noqa: S101 - whoever has a video feature to give built it
            ctx = ctx + self.meta_net(video)[:, None, None]
            embedded = embedded.expand(len(video), -1, -1, -1)
        position = position or self.spec.position
        before = {"end": self.spec.contexts, "middle": self.spec.contexts // 2, "front": 0}[position]
        prompts = []
        for k, length in enumerate(self.text_lengths):
            words, own = embedded[..., k, :, :], ctx[..., k, :, :]
            start, text, rest = words[..., :1, :], words[..., 1 : 1 + length, :], words[..., 1 + length :, :]
            prompts.append(torch.cat([start, own[..., :before, :], text, own[..., before:, :], rest], dim=-2))
        return torch.stack(prompts, dim=-3)
