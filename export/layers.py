"""Find where an exported graph differs from PyTorch: block by block, on clips.

Every block is compared with PyTorch twice. For PyTorch's own input, its error is its own; within the whole graph, the
errors of the blocks before it are included. The tolerance is a multiple of what rounding the block's weights and input
to their precision changes in PyTorch on the same clips (``dfer_deploy.verification.rounding``). So a model with
amplified features, sharp attention or many layers gets a tolerance of its own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dfer_deploy.bundles.blocks import encoder_blocks, head_blocks
from dfer_deploy.console import progress
from dfer_deploy.export.block_graphs import Pass, open_blocks
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.model.temporal import TemporalTransformer
from dfer_deploy.runtimes.predictor import Float32, Frames
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.specs import Precision
from dfer_deploy.verification.blocks import BlockComparison, BlockError
from dfer_deploy.verification.rounding import rounded, rounded_copy

CLASSIFIER = "classifier"
IMAGE_ENCODER, TEMPORAL_HEAD = "image encoder", "temporal head"
"""Names of the graphs if their blocks cannot be distinguished."""


def localise(
    model: DferClip,
    image_encoder: Path,
    temporal_head: Path,
    frames: Frames,
    precision: Precision,
    keep_fp32: Sequence[str] = (),
    *,
    effects: bool = True,
) -> BlockComparison:
    """Compare every block of both graphs with PyTorch, one clip after the other.

    A graph whose blocks cannot be distinguished is compared as one block, with a warning.

    Args:
        model: the checkpoint's model.
        image_encoder: the exported ONNX file; it is left unchanged.
        temporal_head: the exported ONNX file; it is left unchanged.
        frames: a few clips, preferably those with the largest errors, uint8 [N, T, H, W, 3].
        precision: precision of the graphs.
        keep_fp32: blocks that are fp32 in an fp16 graph.
        effects: also measure the effect of each block alone on the logits, which takes most of the time.

    Raises:
        DferDeployError: onnxruntime cannot load a file.
    """
    of_encoder, of_head = encoder_blocks(model.spec), (*head_blocks(model.spec), CLASSIFIER)
    half = {*of_encoder, *of_head} - {*keep_fp32, CLASSIFIER} if precision == "fp16" else set()
    with TorchPredictor(model) as truth, TorchPredictor(rounded_copy(model, half)) as rounding:
        small = frames[:1, :1]
        passed = _passed(truth, small)
        features = passed["projection"].output
        encoder = open_blocks(image_encoder, of_encoder, IMAGE_ENCODER, {"frames": small}, passed)
        head = open_blocks(temporal_head, of_head, TEMPORAL_HEAD, {"frame_features": features}, passed)
        sums = {name: _Sums() for name in (*encoder.ends, *head.ends)}
        for clip in progress(frames, "compare the blocks", total=len(frames)):
            shown = {"frames": clip[None]}
            passed = _passed(truth, clip[None])
            features = passed["projection"].output
            moved = _rounded(rounding, clip[None], passed, sums)
            whole = encoder.whole(shown, passed)
            whole |= head.whole({"frame_features": list(whole.values())[-1]}, passed)
            own = encoder.each(shown, passed) | head.each({"frame_features": features}, passed)
            for name, of_block in sums.items():
                of_block.add(passed[name], own[name], moved[name], whole[name])
                if effects:
                    with _replaced(model, name, own[name]):
                        given = features if name in head.ends else truth.encode(clip[None])
                        logits = truth.classify(given).logits
                    changed = own[name] if name in (CLASSIFIER, TEMPORAL_HEAD) else logits
                    of_block.add_effect(changed - passed[CLASSIFIER].output)
    if encoder.is_whole and half & set(of_encoder):
        half.add(IMAGE_ENCODER)
    if head.is_whole and half & set(of_head):
        half.add(TEMPORAL_HEAD)
    layers = tuple(of_block.error(name, "fp16" if name in half else "fp32") for name, of_block in sums.items())
    return BlockComparison(layers, len(frames))


def _passed(truth: TorchPredictor, clip: Frames) -> dict[str, Pass]:
    """Run one clip through PyTorch and keep every block's input and output."""
    seen: dict[str, Pass] = {}
    with contextlib.ExitStack() as stack:
        for name, block in _torch_blocks(truth.model).items():

            def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                seen[name] = Pass(_numpy(inputs[0]), _numpy(output))

            stack.callback(block.register_forward_hook(keep).remove)
        features = truth.encode(clip)
        logits = truth.classify(features).logits
    stream = seen["encoder.0"].input
    assert stream is not None  # noqa: S101 - kept above, for mypy
    return seen | {
        "patch_embedding": Pass(None, stream),
        "projection": Pass(None, features),
        IMAGE_ENCODER: Pass(None, features),
        CLASSIFIER: Pass(None, logits),
        TEMPORAL_HEAD: Pass(None, logits),
    }


def _rounded(
    truth: TorchPredictor, clip: Frames, passed: Mapping[str, Pass], blocks: Collection[str]
) -> dict[str, Float32]:
    """Return the outputs of these blocks of a rounded copy, for PyTorch's input rounded to fp32."""
    seen: dict[str, Float32] = {}
    generator = torch.Generator().manual_seed(0)

    def right(block: str) -> Tensor:
        return rounded(torch.from_numpy(passed[block].output).to(truth.device), "fp32", generator)

    with contextlib.ExitStack() as stack:
        for name, module in _torch_blocks(truth.model).items():

            def start(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                seen["patch_embedding"] = _numpy(inputs[0])
                return right("patch_embedding"), *inputs[1:]

            def end(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> Tensor:
                seen[name] = _numpy(output)
                return right(name)

            if name in blocks:
                stack.callback(module.register_forward_hook(end).remove)
                if name == "encoder.0":
                    stack.callback(module.register_forward_pre_hook(start).remove)
        features = truth.encode(clip)
        logits = truth.classify(_numpy(right("projection"))).logits
    return seen | {"projection": features, IMAGE_ENCODER: features, CLASSIFIER: logits, TEMPORAL_HEAD: logits}


def _torch_blocks(model: DferClip) -> dict[str, nn.Module]:
    """Return the modules with a residual stream. The inputs and outputs of the other blocks follow from theirs."""
    blocks = {f"encoder.{i}": b for i, b in enumerate(model.image_encoder.transformer.resblocks)}
    if isinstance(model.temporal_net, TemporalTransformer):
        blocks |= {f"head.{i}": b for i, b in enumerate(model.temporal_net.blocks)}
    return blocks


@contextlib.contextmanager
def _replaced(model: DferClip, name: str, value: Float32) -> Iterator[None]:
    """Replace one block's output in PyTorch's model. The classifier's output is the end, so nothing follows it."""
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
        elif name in ("projection", IMAGE_ENCODER):
            hook = model.image_encoder.register_forward_hook(
                lambda module, inputs, output: tensor.flatten(0, 1).to(output.device)
            )
            stack.callback(hook.remove)
        yield


class _Sums:
    """Sums of errors over clips."""

    def __init__(self) -> None:
        self.own = self.rounding = self.added = self.whole = self.size = 0.0
        self.cosine = 1.0
        self.logits: float | None = None

    def add(self, right: Pass, own: Float32, rounding: Float32, whole: Float32) -> None:
        added = right.output if right.input is None else right.output - right.input
        self.own += _squares(own - right.output)
        self.rounding += _squares(rounding - right.output)
        self.added += _squares(added)
        self.whole += _squares(whole - right.output)
        self.size += _squares(right.output)
        products = (whole.astype(np.float64) * right.output).sum(axis=-1)
        lengths = np.linalg.norm(whole.astype(np.float64), axis=-1) * np.linalg.norm(right.output, axis=-1)
        cosine = float((products / np.maximum(lengths, 1e-30)).min()) if np.isfinite(lengths).all() else -1.0
        self.cosine = min(self.cosine, cosine)

    def add_effect(self, change: Float32) -> None:
        self.logits = max(self.logits or 0.0, float(np.abs(change).max()) if np.isfinite(change).all() else math.inf)

    def error(self, block: str, precision: Precision) -> BlockError:
        own, rounding, relative = (
            math.sqrt(error / max(size, 1e-30))
            for error, size in ((self.own, self.added), (self.rounding, self.added), (self.whole, self.size))
        )
        return BlockError(block, precision, own, rounding, relative, self.cosine, self.logits)


def _squares(values: Float32) -> float:
    return float(np.square(values, dtype=np.float64).sum()) if np.isfinite(values).all() else math.inf


def _numpy(tensor: Tensor) -> Float32:
    return cast(Float32, tensor.detach().float().cpu().numpy())
