"""Open an exported file block by block, so that each block's output is visible and its input can be replaced.

The values between blocks are found by structure: the input of a block's first LayerNorm is the residual stream. A graph
with another structure is opened as a single block. The file itself is left unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from dfer_deploy.console import warn
from dfer_deploy.files import temporary_folder
from dfer_deploy.runtimes.onnxruntime_predictor import open_session
from dfer_deploy.runtimes.predictor import Float32


@dataclass(frozen=True)
class Pass:
    """The input and output of a block of PyTorch's model; ``input`` is None if the two have different shapes."""

    input: Float32 | None
    output: Float32


@dataclass(frozen=True)
class BlockGraph:
    """A graph that is opened twice: with every block's output visible, and with every block's input replaceable."""

    ends: dict[str, str]
    """The name of the value at each block's end, in the order of the computation."""

    given: dict[str, str]
    """The name of the extra input through which each block gets the stream, for all blocks but the first."""

    shown: Any
    forced: Any

    @property
    def is_whole(self) -> bool:
        """Whether the graph is a single block."""
        return not self.given

    def whole(self, feeds: Mapping[str, Any], passed: Mapping[str, Pass]) -> dict[str, Float32]:
        """Return every block's output in a run of the whole graph, by the block's name."""
        return self._outputs(self.shown, feeds, passed)

    def each(self, feeds: Mapping[str, Any], passed: Mapping[str, Pass]) -> dict[str, Float32]:
        """Return every block's output for PyTorch's value at the end of the block before, by the block's name."""
        blocks = list(self.ends)
        before = dict(zip(blocks[1:], blocks, strict=False))
        outputs = {block: passed[before[block]].output for block in self.given}
        streams = {self.given[block]: output.reshape(-1, output.shape[-1]) for block, output in outputs.items()}
        return self._outputs(self.forced, {**feeds, **streams}, passed)

    def _outputs(self, session: Any, feeds: Mapping[str, Any], passed: Mapping[str, Pass]) -> dict[str, Float32]:
        """Return the outputs in PyTorch's shapes. The graphs' streams are matrices, PyTorch's are [N, S, W]."""
        outputs = dict(zip(self.ends, session.run(list(self.ends.values()), feeds), strict=True))
        return {block: value.reshape(passed[block].output.shape) for block, value in outputs.items()}


def open_blocks(
    path: Path, blocks: Sequence[str], whole: str, feeds: Mapping[str, Any], passed: Mapping[str, Pass]
) -> BlockGraph:
    """Open a file block by block, or as a whole, with a warning, if its blocks cannot be found.

    path: path of an ONNX file.
        path: an ONNX file.
        blocks: names of the expected blocks in the order of the computation.
        whole: name for the whole graph.
        feeds: a small input, on which the found blocks are tried.
        passed: inputs and outputs of PyTorch's blocks for it.

    Raises:
        DferDeployError: onnxruntime cannot load the file.
    """
    try:
        graph = _opened(path, dict(zip(blocks, _block_ends(onnx.load(path).graph, len(blocks)), strict=True)))
        graph.whole(feeds, passed)
        graph.each(feeds, passed)
        return graph
    except Exception as error:  # onnxruntime's exceptions have no public base class
        reason = str(error).strip().splitlines()[0][:200]
        warn(f"{path.name} is compared as a whole, since its blocks cannot be told apart ({reason})")
    return _opened(path, {whole: onnx.load(path).graph.output[0].name})


def _opened(path: Path, ends: dict[str, str]) -> BlockGraph:
    """Open copies of a file whose extra inputs and outputs are the values between the blocks."""
    given = {block: f"{block}.given" for block in list(ends)[1:]}
    sessions = []
    with temporary_folder("dfer-blocks-") as folder:
        for copy, forced in (("shown", False), ("forced", True)):
            model = onnx.load(path)
            if forced:
                renamed = dict(zip(ends.values(), given.values(), strict=False))
                for node in model.graph.node:
                    node.input[:] = [renamed.get(value, value) for value in node.input]
                model.graph.input.extend(_float(name) for name in given.values())
            there = {output.name for output in model.graph.output}
            model.graph.output.extend(_float(end) for end in ends.values() if end not in there)
            onnx.save(model, folder / f"{copy}.onnx")
            sessions.append(open_session(folder / f"{copy}.onnx", 0))
    return BlockGraph(ends, given, *sessions)


def _float(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


def _block_ends(graph: onnx.GraphProto, blocks: int) -> list[str]:
    """Return the name of the value at the end of each block.

    The image encoder's first block ends at the first LayerNorm of a transformer block, its last block at the output.
    The temporal head's last block ends at the output. A transformer block ends where its MLP is added to the stream.
    """
    encoder = graph.input[0].name == "frames"
    layers = blocks - 2 if encoder else blocks - 1
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    expected = 2 * layers + (2 if encoder else 0)
    if len(norms) != expected:
        raise ValueError(f"it has {len(norms)} LayerNormalization nodes, expected {expected}")
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    streams = []
    for norm in norms[1:-1] if encoder else norms:  # without ln_pre and ln_post
        stream = norm.input[0]
        while stream in casts:
            stream = casts[stream]
        streams.append(stream)
    ends = streams[:1] if encoder else []
    for stream in streams[1::2]:
        sums = [node for node in graph.node if node.op_type == "Add" and stream in node.input]
        if len(sums) != 1:
            raise ValueError(f"{stream} goes into {len(sums)} additions, expected 1")
        ends.append(sums[0].output[0])
    return [*ends, graph.output[0].name]
