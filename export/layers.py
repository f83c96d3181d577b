"""Where an exported graph leaves PyTorch: block by block, on clips.

Every block is held against PyTorch twice. Given PyTorch's own input, its error is its own; within the whole graph, the
errors of the blocks before it are included. The intermediate values are found in the served files by structure: what
enters a block's first LayerNorm is the residual stream. The files themselves stay as they are.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from dfer_deploy.blocks import encoder_blocks, head_blocks
from dfer_deploy.console import progress
from dfer_deploy.errors import DferDeployError
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.model.temporal import TemporalTransformer
from dfer_deploy.runtimes.onnxruntime import open_session
from dfer_deploy.runtimes.predictor import Float32, Frames
from dfer_deploy.runtimes.torch import TorchPredictor
from dfer_deploy.specs import ModelSpec, Precision

CLASSIFIER = "classifier"

TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "fp16": 2e-3}
"""Largest own error of a block, relative to what it adds to the stream. Right blocks of tiny models and of ViT-B/32,
with random weights on a CPU, have up to 5e-7 in fp32 and 4.3e-4 in fp16, whose numbers have 11 bits."""


@dataclass(frozen=True)
class LayerError:
    """One block against PyTorch, over all clips.

    Attributes:
        block: its name; see ``dfer_deploy.blocks``, and ``classifier``.
        precision: of its matrix products.
        own: error of its output given PyTorch's input, relative to what the block adds: ‖Δ‖ / ‖output - input‖.
        relative: error of its output in the whole graph, relative: ‖Δ‖ / ‖output‖.
        cosine: smallest cosine between a token of that output and PyTorch's.
        logits: largest change of a logit that this block alone causes, all others being PyTorch's.

    An error is infinite, and the cosine -1, where a value is NaN or infinite.
    """

    block: str
    precision: Precision
    own: float
    relative: float
    cosine: float
    logits: float

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.precision]

    @property
    def within(self) -> bool:
        return self.own <= self.tolerance


@dataclass(frozen=True)
class Localisation:
    """All blocks in the order of the computation, the classifier last, and how many clips were shown."""

    layers: tuple[LayerError, ...]
    clips: int

    @property
    def first(self) -> LayerError | None:
        """The first block whose own error leaves its tolerance."""
        return next((layer for layer in self.layers if not layer.within), None)

    @property
    def suspect(self) -> LayerError:
        """The block to blame: the first that fails, else the one that changes the logits most."""
        return self.first or max(self.layers, key=lambda layer: layer.logits)

    @property
    def needed(self) -> dict[Precision, float]:
        """The smallest tolerance of a block's own error with which all blocks of a precision would pass."""
        precisions = dict.fromkeys(layer.precision for layer in self.layers)
        return {p: max(layer.own for layer in self.layers if layer.precision == p) for p in precisions}

    def __str__(self) -> str:
        first = self.first
        if first is None:
            worst = self.suspect
            return (
                f"no block alone leaves its tolerance, the errors add up; most comes from {worst.block}, which changes "
                f"a logit by {worst.logits:.2g}"
            )
        if math.isinf(first.own):
            return f"{first.block} is the first block that fails: given right input it answers NaN or infinity"
        return (
            f"{first.block} is the first block that fails: given right input its error is {first.own:.2g} of what it "
            f"adds, at most {first.tolerance:g} is right for {first.precision}"
        )


def localise(
    model: DferClip,
    image_encoder: Path,
    temporal_head: Path,
    frames: Frames,
    precision: Precision,
    keep_fp32: Sequence[str] = (),
) -> Localisation:
    """Compares every block of both graphs with PyTorch, one clip after the other.

    Args:
        model: the checkpoint's model.
        image_encoder: the exported ONNX file; it is not changed.
        temporal_head: the exported ONNX file; it is not changed.
        frames: a few clips, best the worst ones, uint8 [N, T, H, W, 3].
        precision: of the graphs.
        keep_fp32: blocks that are fp32 in a graph of fp16.

    Raises:
        DferDeployError: a file is no graph that this version exports.
    """
    spec = model.spec
    names = (*encoder_blocks(spec), *head_blocks(spec), CLASSIFIER)
    sums = {name: _Sums() for name in names}
    with contextlib.ExitStack() as stack:
        truth = stack.enter_context(TorchPredictor(model))
        encoder = stack.enter_context(_opened(image_encoder, _encoder_streams(spec)))
        head = stack.enter_context(_opened(temporal_head, _head_streams(spec)))
        for clip in progress(frames, "compare the blocks", total=len(frames)):
            passed = _passed(model, truth, clip[None])
            features = passed["projection"].output
            whole = encoder.whole({"frames": clip[None]})
            whole |= head.whole({"frame_features": whole["projection"]})
            own = encoder.each({"frames": clip[None]}, passed) | head.each({"frame_features": features}, passed)
            for name in names:
                right = passed[name]
                with _replaced(model, name, own[name]):
                    logits = truth.classify(
                        features if name in (*head_blocks(spec), CLASSIFIER) else truth.encode(clip[None])
                    ).logits
                changed = own[name] if name == CLASSIFIER else logits
                sums[name].add(right, own[name], whole[name], changed - passed[CLASSIFIER].output)
    half = set(names) - set(keep_fp32) - {CLASSIFIER} if precision == "fp16" else set()
    layers = tuple(sums[name].error(name, "fp16" if name in half else "fp32") for name in names)
    return Localisation(layers, len(frames))


@dataclass(frozen=True)
class _Pass:
    """What goes into a block of PyTorch's model and what comes out; ``input`` None where both are not alike."""

    input: Float32 | None
    output: Float32


def _passed(model: DferClip, truth: TorchPredictor, clip: Frames) -> dict[str, _Pass]:
    """Runs one clip through PyTorch and keeps every block's input and output."""
    seen: dict[str, _Pass] = {}
    with contextlib.ExitStack() as stack:
        for name, block in _torch_blocks(model).items():

            def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                seen[name] = _Pass(_numpy(inputs[0]), _numpy(output))

            stack.callback(block.register_forward_hook(keep).remove)
        features = truth.encode(clip)
        logits = truth.classify(features).logits
    stream = seen["encoder.0"].input
    assert stream is not None  # noqa: S101 - kept above, for mypy
    return seen | {
        "patch_embedding": _Pass(None, stream),
        "projection": _Pass(None, features),
        CLASSIFIER: _Pass(None, logits),
    }


def _torch_blocks(model: DferClip) -> dict[str, nn.Module]:
    """The modules with a residual stream; PyTorch's other blocks are told by what enters and leaves these."""
    blocks = {f"encoder.{i}": b for i, b in enumerate(model.image_encoder.transformer.resblocks)}
    if isinstance(model.temporal_net, TemporalTransformer):
        blocks |= {f"head.{i}": b for i, b in enumerate(model.temporal_net.blocks)}
    return blocks


@contextlib.contextmanager
def _replaced(model: DferClip, name: str, value: Float32) -> Iterator[None]:
    """PyTorch's model with one block's output replaced; the classifier's output is the end, so nothing follows."""
    blocks = _torch_blocks(model)
    tensor = torch.from_numpy(value)
    with contextlib.ExitStack() as stack:
        if name in blocks:
            hook = blocks[name].register_forward_hook(lambda module, inputs, output: tensor.to(output.device))
            stack.callback(hook.remove)
        elif name == "patch_embedding":
            first = blocks["encoder.0"]
            before = first.register_forward_pre_hook(lambda module, inputs: (tensor.to(inputs[0].device), *inputs[1:]))
            stack.callback(before.remove)
        elif name == "projection":
            hook = model.image_encoder.register_forward_hook(
                lambda module, inputs, output: tensor.flatten(0, 1).to(output.device)
            )
            stack.callback(hook.remove)
        yield


class _Sums:
    """Adds up errors over clips."""

    def __init__(self) -> None:
        self.own = self.added = self.whole = self.size = self.logits = 0.0
        self.cosine = 1.0

    def add(self, right: _Pass, own: Float32, whole: Float32, logits: Float32) -> None:
        added = right.output if right.input is None else right.output - right.input
        self.own += _squares(own - right.output)
        self.added += _squares(added)
        self.whole += _squares(whole - right.output)
        self.size += _squares(right.output)
        products = (whole.astype(np.float64) * right.output).sum(axis=-1)
        lengths = np.linalg.norm(whole.astype(np.float64), axis=-1) * np.linalg.norm(right.output, axis=-1)
        cosine = float((products / np.maximum(lengths, 1e-30)).min()) if np.isfinite(lengths).all() else -1.0
        self.cosine = min(self.cosine, cosine)
        self.logits = max(self.logits, float(np.abs(logits).max()) if np.isfinite(logits).all() else math.inf)

    def error(self, block: str, precision: Precision) -> LayerError:
        own, relative = (
            math.sqrt(error / max(size, 1e-30)) for error, size in ((self.own, self.added), (self.whole, self.size))
        )
        return LayerError(block, precision, own, relative, self.cosine, self.logits)


def _squares(values: Float32) -> float:
    return float(np.square(values, dtype=np.float64).sum()) if np.isfinite(values).all() else math.inf


@dataclass(frozen=True)
class _Graph:
    """An exported graph, opened twice: with every block's output shown, and with every block's input given."""

    ends: dict[str, str]
    """The value at each block's end, in the order of the computation."""

    given: dict[str, str]
    """The extra input through which each block gets the stream, for all blocks but the first."""

    shown: Any
    forced: Any

    def whole(self, feeds: dict[str, Any]) -> dict[str, Float32]:
        """Every block's output in a run of the whole graph."""
        return dict(zip(self.ends, self.shown.run(list(self.ends.values()), feeds), strict=True))

    def each(self, feeds: dict[str, Any], passed: dict[str, _Pass]) -> dict[str, Float32]:
        """Every block's output given PyTorch's value at the end of the block before."""
        blocks = list(self.ends)
        before = dict(zip(blocks[1:], blocks, strict=False))
        streams = {self.given[block]: passed[before[block]].output for block in self.given}
        return dict(zip(self.ends, self.forced.run(list(self.ends.values()), feeds | streams), strict=True))


@contextlib.contextmanager
def _opened(path: Path, streams: Callable[[onnx.GraphProto], list[tuple[str, str]]]) -> Iterator[_Graph]:
    """Opens copies of a file whose extra inputs and outputs are the residual stream between the blocks."""
    shown = onnx.load(path)
    try:
        ends = dict(streams(shown.graph))
    except ValueError as error:
        raise DferDeployError(
            f"{path} is no graph that this version of dfer-deploy exports ({error}); export the bundle again"
        ) from error
    forced = onnx.ModelProto()
    forced.CopyFrom(shown)
    given = {}
    for before, block in zip(list(ends)[:-1], list(ends)[1:], strict=True):
        given[block] = f"{block}.given"
        for node in forced.graph.node:
            for index, value in enumerate(node.input):
                if value == ends[before]:
                    node.input[index] = given[block]
        forced.graph.input.append(onnx.helper.make_tensor_value_info(given[block], onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory(prefix="dfer-layers-") as folder:
        sessions = []
        for name, model in (("shown", shown), ("forced", forced)):
            there = {output.name for output in model.graph.output}
            model.graph.output.extend(
                onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None)
                for end in ends.values()
                if end not in there
            )
            copy = Path(folder) / f"{path.stem}.{name}.onnx"
            onnx.save(model, copy)
            sessions.append(open_session(copy, 0))
        yield _Graph(ends, given, *sessions)


def _encoder_streams(spec: ModelSpec) -> Callable[[onnx.GraphProto], list[tuple[str, str]]]:
    def streams(graph: onnx.GraphProto) -> list[tuple[str, str]]:
        names = encoder_blocks(spec)
        norms = _norms(graph, 2 * spec.clip.vision.layers + 2)[1:-1]  # without ln_pre and ln_post
        return list(zip(names, [norms[0].input[0], *_block_ends(graph, norms), graph.output[0].name], strict=True))

    return streams


def _head_streams(spec: ModelSpec) -> Callable[[onnx.GraphProto], list[tuple[str, str]]]:
    def streams(graph: onnx.GraphProto) -> list[tuple[str, str]]:
        norms = _norms(graph, 2 * spec.temporal.depth)
        return list(
            zip((*head_blocks(spec), CLASSIFIER), [*_block_ends(graph, norms), graph.output[0].name], strict=True)
        )

    return streams


def _norms(graph: onnx.GraphProto, count: int) -> list[onnx.NodeProto]:
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    if len(norms) != count:
        raise ValueError(f"it has {len(norms)} LayerNormalization nodes, expected {count}")
    return norms


def _block_ends(graph: onnx.GraphProto, norms: list[onnx.NodeProto]) -> list[str]:
    """What leaves each block: the sum of the MLP and of the stream that enters the block's second LayerNorm."""
    ends = []
    for norm in norms[1::2]:
        sums = [node for node in graph.node if node.op_type == "Add" and norm.input[0] in node.input]
        if len(sums) != 1:
            raise ValueError(f"{norm.input[0]} goes into {len(sums)} additions, expected 1")
        ends.append(sums[0].output[0])
    return ends


def _numpy(tensor: Tensor) -> Float32:
    return cast(Float32, tensor.detach().float().cpu().numpy())
