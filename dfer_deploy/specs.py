"""The contract between training, export, serving and verification. Needs only the standard library and NumPy.

The layers of the model, ONNX tensor names, Triton's config.pbtxt, the client's requests and the verifier's expectations
are all derived from it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dfer_deploy.errors import SettingError
from dfer_deploy.plain_data import plain

MAX_FRAMES = 16
"""Frames of a clip, and the number of temporal positions that the model learns (paper, section 4.1)."""

MAX_IMAGE_BYTES = 16 << 20
"""Limits the bytes of one encoded image (16 MiB). The server refuses larger ones, and the client does not send them."""

Precision = Literal["fp32", "fp16"]
PromptPosition = Literal["front", "middle", "end"]
PROMPT_POSITIONS: tuple[PromptPosition, ...] = ("front", "middle", "end")
Classifier = Literal["text", "image_conditioned_text", "linear"]

MAX_SIZE = 16384
"""Limits every width, number of pixels and number of tokens, because specs come from files. It is four times that of
the largest CLIP."""

MAX_LAYERS = 128
"""Limits the layers of a transformer, because specs come from files."""


def require(condition: bool, message: str) -> None:
    """Check a condition.

    Raises:
        SettingError: ``condition`` is false; ``message`` is its text.
    """
    if not condition:
        raise SettingError(message)


def _require_sizes(spec: Any, where: str, *names: str, largest: int = MAX_SIZE) -> None:
    for name in names:
        value = getattr(spec, name)
        require(0 < value <= largest, f"{where}{name} is {value}, expected 1 to {largest}")


@dataclass(frozen=True)
class VisionSpec:
    """CLIP's vision transformer, in the terms of open_clip's ``CLIPVisionCfg``."""

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    head_width: int = 64
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _require_sizes(self, "vision.", "image_size", "patch_size", "width", "head_width")
        _require_sizes(self, "vision.", "layers", largest=MAX_LAYERS)
        require(0 < self.mlp_ratio <= 64, f"vision.mlp_ratio is {self.mlp_ratio}, expected more than 0 and at most 64")
        require(
            self.image_size % self.patch_size == 0,
            f"vision.image_size {self.image_size} is not a multiple of vision.patch_size {self.patch_size}; change one",
        )
        require(
            self.width % self.head_width == 0,
            f"vision.width {self.width} is not a multiple of vision.head_width {self.head_width}; change one",
        )

    @property
    def heads(self) -> int:
        return self.width // self.head_width


@dataclass(frozen=True)
class TextSpec:
    """CLIP's text transformer, in the terms of open_clip's ``CLIPTextCfg``."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    layers: int = 12
    heads: int = 8

    def __post_init__(self) -> None:
        _require_sizes(self, "text.", "context_length", "width", "heads")
        _require_sizes(self, "text.", "layers", largest=MAX_LAYERS)
        _require_sizes(self, "text.", "vocab_size", largest=1_000_000)
        require(
            self.width % self.heads == 0,
            f"text.width {self.width} is not a multiple of text.heads {self.heads}; change one",
        )
        require(self.context_length > 2, f"text.context_length is {self.context_length}, expected at least 3")


@dataclass(frozen=True)
class ClipSpec:
    """The CLIP backbone: both towers and the joint embedding space of L = ``embed_dim`` dimensions."""

    vision: VisionSpec = VisionSpec()
    text: TextSpec = TextSpec()
    embed_dim: int = 512
    quick_gelu: bool = True

    def __post_init__(self) -> None:
        _require_sizes(self, "", "embed_dim")


@dataclass(frozen=True)
class TemporalSpec:
    """The temporal transformer (paper, section 3.2). Depth 0 is the mean over frames, without parameters."""

    depth: int = 1
    heads: int = 8
    head_width: int = 64
    mlp_width: int = 1024
    max_frames: int = MAX_FRAMES

    def __post_init__(self) -> None:
        require(0 <= self.depth <= 6, f"temporal.depth is {self.depth}, expected 0 to 6 (0 is the mean over frames)")
        _require_sizes(self, "temporal.", "heads", "head_width", "mlp_width")
        require(
            self.max_frames == MAX_FRAMES, f"temporal.max_frames is {self.max_frames}, the contract fixes {MAX_FRAMES}"
        )


@dataclass(frozen=True)
class PromptSpec:
    """The text side: class names, the text for each class, and the learnable contexts around it.

    Attributes:
        class_names: C distinct names, at least 2, in the order of the logits.
        class_texts: text of every class for CLIP's tokenizer, without the contexts; by default the class names.
        contexts: M, the number of learnable context vectors; 0 for none.
        class_specific: whether every class has its own contexts [C, M, D]; otherwise all share them, [M, D].
        position: position of the class text among the contexts; ``end`` puts it after them.

    Raises:
        DferDeployError: names, texts or a number are not valid.
    """

    class_names: tuple[str, ...]
    class_texts: tuple[str, ...] = ()
    contexts: int = 8
    class_specific: bool = True
    position: PromptPosition = "end"

    def __post_init__(self) -> None:
        if not self.class_texts:
            object.__setattr__(self, "class_texts", self.class_names)
        require(len(self.class_names) >= 2, f"{len(self.class_names)} class(es) given, expected at least 2")
        require(
            len(set(self.class_names)) == len(self.class_names),
            f"class names {list(self.class_names)} are not distinct; give every class its own name",
        )
        for name in self.class_names:
            require(
                bool(name.strip()) and name.isprintable(),
                f"class name {name!r} is empty or not printable; give every class a readable name",
            )
        require(
            len(self.class_texts) == len(self.class_names),
            f"{len(self.class_texts)} class texts for {len(self.class_names)} class names; give one text per name",
        )
        require(self.contexts >= 0, f"contexts is {self.contexts}, expected 0 or more")
        require(
            self.position in PROMPT_POSITIONS,
            f"prompt position {self.position!r} is unknown; expected one of {', '.join(PROMPT_POSITIONS)}",
        )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class ModelSpec:
    """A whole DFER-CLIP model. The defaults are the paper's: ViT-B/32, one temporal layer, τ = 0.01.

    Attributes:
        prompts: class names, texts and contexts.
        clip: CLIP backbone.
        temporal: temporal model, from frame features to the video feature.
        temperature: τ, by which cosines are divided; positive.
        classifier: ``text`` compares the video feature with the text features. ``image_conditioned_text`` is Co-CoOp:
            a small network shifts the contexts depending on the clip, so every clip has its own text features.
            ``linear`` is a layer W v + b on the video feature, which is not normalised; the texts are not used.

    Raises:
        DferDeployError: the temperature is not positive, or Co-CoOp has no contexts.
    """

    prompts: PromptSpec
    clip: ClipSpec = ClipSpec()
    temporal: TemporalSpec = TemporalSpec()
    temperature: float = 0.01
    classifier: Classifier = "text"

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature is {self.temperature}, expected a positive number")
        require(
            self.classifier != "image_conditioned_text" or self.prompts.contexts > 0,
            "contexts is 0, expected at least 1 where the clip shifts the contexts (Co-CoOp)",
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries, lists, strings and numbers, for JSON, TOML and ``weights_only``."""
        return plain(dataclasses.asdict(self))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. A string in ``shape`` is a dynamic dimension; ``bytes`` may have any length."""

    name: str
    dtype: Literal["uint8", "int32", "float32", "bytes"]
    shape: tuple[int | str, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(object if self.dtype == "bytes" else self.dtype)


@dataclass(frozen=True)
class GraphSpec:
    """A served graph: an ONNX file, a TensorRT engine or a Triton model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Contract:
    """The interfaces of a served model: its ONNX graphs, the Triton models around them, and the ensembles.

    Attributes:
        image_encoder: ONNX graph from frames to frame features.
        temporal_head: ONNX graph from the frame features of a clip to logits and probabilities.
        ensemble: ensemble from clips of frames to logits and probabilities.
        preprocess: Python model from encoded images (JPEG, PNG, WebP) to frames.
        encoded: ensemble from clips of encoded images to logits and probabilities.
        window: ONNX graph without weights that joins the newest frame's features to the earlier ones.
        stream: ensemble from the newest frame of a stream, and the features of the frames before it, to logits and
            probabilities.
        encoded_stream: ensemble as ``stream``, but from one encoded image.
    """

    image_encoder: GraphSpec
    temporal_head: GraphSpec
    ensemble: GraphSpec
    preprocess: GraphSpec
    encoded: GraphSpec
    window: GraphSpec
    stream: GraphSpec
    encoded_stream: GraphSpec


def contract_for(spec: ModelSpec, name: str = "dfer") -> Contract:
    """Derive the contract of a model from its ``spec``, with the name prefix ``name``.

    Frames are RGB in [0, 255] and resized to the model's image size. All further arithmetic on them is in the graph.
    """
    size, features, time = spec.clip.vision.image_size, spec.clip.embed_dim, spec.temporal.max_frames
    frames = TensorSpec("frames", "uint8", ("batch", "time", size, size, 3))
    images = TensorSpec("images", "bytes", ("batch", "time"))
    frame_features = TensorSpec("frame_features", "float32", ("batch", "time", features))
    new_frame = TensorSpec("frames", "uint8", ("batch", 1, size, size, 3))
    new_image = TensorSpec("images", "bytes", ("batch", 1))
    new_features = TensorSpec("frame_features", "float32", ("batch", 1, features))
    recent = (
        TensorSpec("recent_features", "float32", ("batch", time - 1, features)),
        TensorSpec("recent_count", "int32", ("batch", 1)),
    )
    window_features = TensorSpec("window_features", "float32", ("batch", time, features))
    of_encoder = TensorSpec("encoder_id", "int32", ("batch", 1))
    logits = TensorSpec("logits", "float32", ("batch", spec.prompts.num_classes))
    probabilities = TensorSpec("probabilities", "float32", ("batch", spec.prompts.num_classes))
    of_stream = (probabilities, logits, new_features, of_encoder)
    return Contract(
        image_encoder=GraphSpec(f"{name}_image_encoder", (frames,), (frame_features,)),
        temporal_head=GraphSpec(f"{name}_temporal_head", (frame_features,), (logits, probabilities)),
        ensemble=GraphSpec(name, (frames,), (probabilities, logits)),
        preprocess=GraphSpec(f"{name}_preprocess", (images,), (frames,)),
        encoded=GraphSpec(f"{name}_encoded", (images,), (probabilities, logits)),
        window=GraphSpec(f"{name}_window", (new_features, *recent), (window_features, of_encoder)),
        stream=GraphSpec(f"{name}_stream", (new_frame, *recent), of_stream),
        encoded_stream=GraphSpec(f"{name}_encoded_stream", (new_image, *recent), of_stream),
    )


def encoder_id(image_encoder_sha256: str) -> int:
    """Compute the id of an image encoder, 1 to 2³¹ − 1, by which a stream's client identifies its features.

    Args:
        image_encoder_sha256: hexadecimal SHA-256 of the encoder's ONNX file.
    """
    return int(image_encoder_sha256[:8], 16) % (2**31 - 1) + 1
