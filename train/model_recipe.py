"""The part of a recipe that says which model is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfer_deploy.specs import ClipSpec, PromptSpec, TemporalSpec, require


@dataclass(frozen=True)
class ModelRecipe:
    """Which model. Exactly one of ``open_clip`` and ``clip`` describes the backbone.

    Attributes:
        prompts: class names, class texts and contexts.
        open_clip: a model name of open_clip's, such as ``ViT-B-32-quickgelu``.
        pretrained: open_clip's tag of trained weights (``openai``) or the path of a weight file; empty: random weights.
        clip: sizes of a CLIP with random weights.
        fast_start: with random weights, choose them as ``initialisation.fast_start`` does.
        temporal: the temporal model.
    """

    prompts: PromptSpec
    open_clip: str | None = None
    pretrained: str = ""
    clip: ClipSpec | None = None
    fast_start: bool = False
    temporal: TemporalSpec = field(default_factory=TemporalSpec)

    def __post_init__(self) -> None:
        require(
            (self.open_clip is None) != (self.clip is None),
            "the recipe's [model] names "
            + ("no backbone" if self.clip is None else "two backbones")
            + '; give either open_clip = "ViT-B-32-quickgelu" or the sizes in [model.clip]',
        )
        require(
            not self.pretrained or self.open_clip is not None,
            f"model.pretrained is {self.pretrained!r} without model.open_clip; name the model that the weights are of",
        )
        require(
            not (self.pretrained and self.fast_start),
            "model.fast_start would overwrite pretrained weights; remove one of the two",
        )
