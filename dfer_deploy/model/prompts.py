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

from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import PromptPosition, PromptSpec

START_OF_TEXT = 49406
END_OF_TEXT = 49407


@functools.cache
def tokenizer() -> SimpleTokenizer:
    """CLIP's byte-pair tokenizer, 49,408 tokens."""
    return SimpleTokenizer()


def class_tokens(text: str) -> list[int]:
    """Token ids of a class text, without start and end of text."""
    return list(tokenizer().encode(text))


def text_from_tokens(tokens: Sequence[int]) -> str:
    """The text of token ids, written so that tokenising it again gives the same ids.

    CLIP's vocabulary marks the ends of words but not the spaces, so the plain decoding has a space before every
    comma; the usual English spacing is restored wherever that does not change the tokens.

    Raises:
        DferDeployError: no text gives these ids.
    """
    decoded = tokenizer().decode(list(tokens)).strip()
    spaced = re.sub(r"\s+([,.;:!?)\]])", r"\1", decoded)
    spaced = re.sub(r"([(\[])\s+", r"\1", spaced)
    spaced = re.sub(r"\s+('(?:s|t|re|ve|m|ll|d)\b)", r"\1", spaced)
    spaced = re.sub(r"(\w)\s+([-/])\s+(\w)", r"\1\2\3", spaced)
    for candidate in (spaced, decoded):
        if class_tokens(candidate) == list(tokens):
            return candidate
    raise DferDeployError(f"the tokens {list(tokens)} are no text that CLIP's tokenizer gives; was the file changed?")


class TextEncoder(nn.Module):
    """CLIP's text transformer, reading the feature where the tokenised prompt ends. Always frozen."""

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
        """Prompt embeddings [C, 77, D] and the index of each one's end of text [C] to text features [C, L]."""
        x = prompts + self.positional_embedding
        x = self.ln_final(self.transformer(x, attn_mask=self.causal_mask))
        features: Tensor = x[torch.arange(len(x), device=x.device), end_of_text] @ self.text_projection
        return features


def _causal_mask(length: int) -> Tensor:
    # On the CPU even where the rest of the model is built without memory, on the device "meta".
    return torch.full((length, length), float("-inf"), device="cpu").triu_(1)


class PromptLearner(nn.Module):
    """Learnable contexts: class-specific [C, M, D] or shared [M, D], inserted into the embedded class texts.

    The token ids are those of ``"X " * M + text``; the M placeholders are replaced by the contexts.
    """

    def __init__(self, spec: PromptSpec, token_embedding: nn.Embedding, context_length: int) -> None:
        super().__init__()
        self.spec = spec
        width = token_embedding.embedding_dim
        shape = (spec.num_classes, spec.contexts, width) if spec.class_specific else (spec.contexts, width)
        self.ctx = nn.Parameter(torch.randn(shape) * 0.02)

        texts = [class_tokens(text) for text in spec.class_texts]
        self.text_lengths = [len(tokens) for tokens in texts]
        longest = 2 + spec.contexts + max(self.text_lengths)
        if longest > context_length:
            text = spec.class_texts[self.text_lengths.index(max(self.text_lengths))]
            raise DferDeployError(
                f"the prompt of {text!r} with {spec.contexts} contexts has {longest} tokens, CLIP reads at most "
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

    def forward(self, token_embedding: nn.Embedding, position: PromptPosition | None = None) -> Tensor:
        """Prompt embeddings [C, 77, D].

        Args:
            token_embedding: CLIP's.
            position: where the contexts stand; by default where the spec says.
        """
        prefix, suffix = token_embedding(self.prefix_ids), token_embedding(self.suffix_ids)
        ctx = self.ctx if self.spec.class_specific else self.ctx.expand(self.spec.num_classes, -1, -1)
        position = position or self.spec.position
        before = {"end": self.spec.contexts, "middle": self.spec.contexts // 2, "front": 0}[position]
        prompts = [
            torch.cat([prefix[k], ctx[k, :before], suffix[k, :length], ctx[k, before:], suffix[k, length:]])
            for k, length in enumerate(self.text_lengths)
        ]
        return torch.stack(prompts)
