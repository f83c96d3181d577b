"""Find the blocks that must stay fp32 so that the others can be fp16, with few exports.

One fp16 export measures the effect of each block on the logits (``export/layers.py``). The search orders the blocks by
effect and finds the shortest beginning of that order with which the gate passes, by doubling and halving. It then
returns those blocks to fp16 that turn out not to be needed. The result is minimal: with any one of its blocks in fp16
the gate fails, provided that keeping more blocks in fp32 never makes an answer worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dfer_deploy.bundles.blocks import checked_blocks, encoder_blocks, head_blocks
from dfer_deploy.console import step
from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph, blocks_beyond_fp16
from dfer_deploy.export.layers import CLASSIFIER, localise
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.files import temporary_folder
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Frames, Predictor
from dfer_deploy.specs import contract_for
from dfer_deploy.verification.blocks import Bisection, Trial

Gate = Callable[[Predictor], Sequence[str]]
"""Compares a way of serving with its limits: returns one sentence for each exceeded limit, none if it passes."""


def bisect(model: DferClip, frames: Frames, gate: Gate) -> Bisection:
    """Find a minimal set of blocks that must stay fp32 in an fp16 export for a gate to pass.

    The same arguments give the same answer. The exports are written to a temporary folder.

    Args:
        model: the checkpoint's model.
        frames: a few clips on which effects are measured, preferably those that fp16 changes most, uint8
            [N, T, H, W, 3].
        gate: judges an export, for example with ``dfer_deploy.verification.verify.verify`` on all clips.

    Raises:
        DferDeployError: a block cannot be exported.
    """
    with temporary_folder("dfer-bisect-") as folder:
        exports = _Exports(model, folder, gate)
        first = blocks_beyond_fp16(model)
        passed = exports.holds(first)
        with step("measure the effect of each block"):
            localisation = localise(model, *exports.files(first), frames, "fp16", first)
        names = (*encoder_blocks(model.spec), *head_blocks(model.spec))
        if passed:
            return Bisection(first, localisation, tuple(exports.trials))
        effects = {layer.block: layer.logits or 0.0 for layer in localisation.layers if layer.block != CLASSIFIER}
        # Blocks with the same effect, for example two infinite ones, stay in the order of the computation.
        order = [name for name in sorted(names, key=lambda name: -effects[name]) if name not in first]
        if not exports.holds(names):
            return Bisection(None, localisation, tuple(exports.trials))
        kept = _shortest(order, lambda blocks: exports.holds((*first, *blocks)))
        for block in reversed(kept[:-1]):
            fewer = [other for other in kept if other != block]
            if exports.holds((*first, *fewer)):
                kept = fewer
        return Bisection(checked_blocks((*first, *kept), model.spec), localisation, tuple(exports.trials))


def _shortest(order: Sequence[str], holds: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return the shortest beginning of ``order`` that passes. All of it must pass, and none of it must not."""
    fails, passes = 0, 1
    while passes < len(order) and not holds(order[:passes]):
        fails, passes = passes, 2 * passes
    passes = min(passes, len(order))
    while passes - fails > 1:
        middle = (fails + passes) // 2
        if holds(order[:middle]):
            passes = middle
        else:
            fails = middle
    return list(order[:passes])


@dataclass
class _Exports:
    """Exports with some blocks in fp32, each judged once. Only the last one stays on the disk."""

    model: DferClip
    folder: Path
    gate: Gate
    trials: list[Trial] = field(default_factory=list)

    def holds(self, keep_fp32: Sequence[str]) -> bool:
        kept = checked_blocks(keep_fp32, self.model.spec)
        for trial in self.trials:
            if trial.keep_fp32 == kept:
                return not trial.failures
        files = self.files(kept)
        all_blocks = (*encoder_blocks(self.model.spec), *head_blocks(self.model.spec))
        said = "all" if kept == all_blocks else ", ".join(kept) or "none"
        with step(f"export {len(self.trials) + 1}, in fp32: {said}") as notes:
            with OnnxRuntimePredictor(*files, name=f"onnxruntime fp16, in fp32: {said}") as predictor:
                failures = tuple(self.gate(predictor))
            notes.append("fails" if failures else "holds")
        self.trials.append(Trial(kept, failures))
        return not failures

    def files(self, keep_fp32: Sequence[str]) -> tuple[Path, Path]:
        """Return the paths of the two graphs; export them if they do not exist yet."""
        contract = contract_for(self.model.spec)
        paths = []
        for spec, graph, blocks in (
            (contract.image_encoder, ImageEncoderGraph, encoder_blocks(self.model.spec)),
            (contract.temporal_head, TemporalHeadGraph, head_blocks(self.model.spec)),
        ):
            kept = [name for name in blocks if name in keep_fp32]
            path = self.folder / f"{spec.name}-{'-'.join(str(blocks.index(name)) for name in kept)}.onnx"
            if not path.exists():
                with torch.inference_mode():
                    module = graph(self.model, "fp16", kept)
                onnx_from_graph(module, spec, path)
            paths.append(path)
        for old in set(self.folder.iterdir()) - set(paths):
            old.unlink()
        return paths[0], paths[1]
