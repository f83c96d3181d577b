"""The part of a recipe that defines the model and its trained parts.

Every row of the paper's comparisons (section 4) sets a few values of ``[model]``; the others keep their defaults.

=============================================  ======================================================================
Row                                            Values
=============================================  ======================================================================
Training strategies
  linear probe                                 ``strategy = "linear_probe"``
  full fine-tuning                             ``strategy = "fine_tune"``
  full fine-tuning + temporal model            ``strategy = "fine_tune_temporal"``
  zero-shot CLIP                               ``strategy = "zero_shot"``, ``template = "a photo of {name}."``
  CoOp                                         ``strategy = "coop"``, ``template = "{name}."``
  Co-CoOp                                      ``strategy = "cocoop"``, ``template = "{name}."``,
                                               ``prompts.class_specific = false``
  DFER-CLIP                                    ``strategy = "dfer_clip"``, the default
Prompts
  [class]                                      ``template = "{name}."``, ``prompts.contexts = 0``
  a photo of [class]                           ``template = "a photo of {name}."``, ``prompts.contexts = 0``
  an expression of [class]                     ``template = "an expression of {name}."``, ``prompts.contexts = 0``
  [descriptor]                                 ``prompts.contexts = 0``
  [learnable contexts] [class]                 ``template = "{name}."``
  [learnable contexts] [descriptor]            the default; ``prompts.position`` is ``front``, ``middle`` or ``end``
Contexts
  number of contexts                           ``prompts.contexts = 4``, ``8`` or ``16``
  shared or class-specific                     ``prompts.class_specific = false`` or ``true``
Temporal model
  without, or 1 to 3 layers                    ``temporal.depth = 0``, ``1``, ``2`` or ``3``
=============================================  ======================================================================

The reference implementation contains only DFER-CLIP, with its prompts and depths (upstream files ``main.py``,
``models/Text.py``). The other strategies follow their own papers; see ``STRATEGIES``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dfer_deploy.specs import Classifier, ClipSpec, PromptSpec, TemporalSpec, require

Strategy = Literal["dfer_clip", "linear_probe", "fine_tune", "fine_tune_temporal", "zero_shot", "coop", "cocoop"]
Part = Literal["temporal", "image_encoder", "prompts", "head"]


@dataclass(frozen=True)
class StrategyParts:
    """The parts of the model that a strategy uses and trains.

    Attributes:
        classifier: see ``ModelSpec``.
        temporal: whether there is a temporal model. Without one, the video feature is the mean over the frames,
            whatever the recipe's ``temporal`` says.
        contexts: whether there are contexts; without them the recipe's ``prompts.contexts`` is ignored.
        trained: the trained parts. The others, and always the text encoder, are frozen.
    """

    classifier: Classifier
    temporal: bool
    contexts: bool
    trained: tuple[Part, ...]


STRATEGIES: dict[Strategy, StrategyParts] = {
    # Zhao and Patras, BMVC 2023.
    "dfer_clip": StrategyParts("text", True, True, ("temporal", "image_encoder", "prompts")),
    # A linear layer on the mean of CLIP's image features, as in Radford et al., ICML 2021, section 3.2: not normalised.
    "linear_probe": StrategyParts("linear", False, False, ("head",)),
    "fine_tune": StrategyParts("linear", False, False, ("image_encoder", "head")),
    "fine_tune_temporal": StrategyParts("linear", True, False, ("temporal", "image_encoder", "head")),
    # Radford et al., section 3.1.
    "zero_shot": StrategyParts("text", False, False, ()),
    # Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022.
    "coop": StrategyParts("text", False, True, ("prompts",)),
    # Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022. It cannot be exported.
    "cocoop": StrategyParts("image_conditioned_text", False, True, ("prompts",)),
}


@dataclass(frozen=True)
class ModelRecipe:
    """The settings of the model. Exactly one of ``open_clip`` and ``clip`` describes the backbone.

    Attributes:
        prompts: class names, class texts and contexts.
        strategy: what is trained, see ``STRATEGIES``; with ``zero_shot`` nothing is.
        template: text that replaces the class texts, with the class name for ``{name}``.
        prompts_file: file whose descriptors replace the class texts; ``dfer-deploy describe`` writes it.
        open_clip: name of a model in open_clip, such as ``ViT-B-32-quickgelu``.
        pretrained: open_clip's tag of trained weights (``openai``). Or a file (its name ends in .pt, .pth, .bin or
            .safetensors) with CLIP's weights or a DFER-CLIP checkpoint, of dfer-deploy or of the reference
            implementation. Empty for random weights.
        clip: sizes of a CLIP with random weights, or with the weights of a file.
        fast_start: choose random weights as ``initialisation.fast_start`` does.
        temporal: sizes of the temporal model.
    """

    prompts: PromptSpec
    strategy: Strategy = "dfer_clip"
    template: str = ""
    prompts_file: str = ""
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
            not self.pretrained or self.open_clip is not None or self.pretrained_is_file,
            f"model.pretrained is {self.pretrained!r} without model.open_clip; name the model that the weights are of",
        )
        require(
            not (self.pretrained and self.fast_start),
            "model.fast_start would overwrite pretrained weights; remove one of the two",
        )
        require(
            not self.template or "{name}" in self.template,
            f'model.template is {self.template!r}, expected a text with {{name}} in it, such as "a photo of {{name}}."',
        )
        require(
            not (self.template and self.prompts_file),
            "model.template and model.prompts_file both replace the class texts; remove one of the two",
        )
        require(
            self.prompts.contexts > 0 or self.strategy not in ("coop", "cocoop"),
            f"model.prompts.contexts is 0, expected at least 1: the strategy {self.strategy!r} trains nothing else",
        )
        require(
            self.temporal.depth > 0 or self.strategy != "fine_tune_temporal",
            "model.temporal.depth is 0, expected at least 1 for the strategy 'fine_tune_temporal'; "
            "without a temporal model it is 'fine_tune'",
        )

    @property
    def pretrained_is_file(self) -> bool:
        """Whether ``pretrained`` names a file, not a tag."""
        return self.pretrained.endswith((".pt", ".pth", ".bin", ".safetensors")) or "/" in self.pretrained
