"""A bound for the number of frames inside a graph, for servers whose own code cannot check a request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

_PREFIX = "frame_bound"


def bound_frames(path: Path, max_frames: int) -> None:
    """Let a graph refuse every T outside 1 … ``max_frames``, before it computes anything.

    Triton's onnxruntime backend bounds the batch of a request only. One with thousands of frames would take gigabytes,
    and one without frames would be answered. The graph now looks T up in two tables with ``max_frames`` entries, with
    the indices T − 1 and T − ``max_frames`` − 1. onnxruntime refuses an index outside a table; a negative one counts
    from the end. So the first table refuses T above the bound, and the second T = 0. A Reshape to the same shape, which
    copies nothing, makes all else wait for both.

    Args:
        path: ONNX file whose first input has the shape [B, T, …]. It is written again.
        max_frames: the largest T, at least 1.
    """
    model = onnx.load(path)
    graph = model.graph
    tensor = graph.input[0]
    rank = len(tensor.type.tensor_type.shape.dim)

    def name(part: str) -> str:
        return f"{_PREFIX}.{part}"

    bounded = name(tensor.name)
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == tensor.name:
                node.input[place] = bounded
    constants = {
        "numbers": np.arange(1, max_frames + 1),
        "zeros": np.zeros(max_frames, np.int64),
        "before": np.array([-1]),
        "behind": np.array([-1 - max_frames]),
        "rest": np.zeros(rank - 2),  # 0 keeps the dimension
    }
    graph.initializer.extend(
        numpy_helper.from_array(values.astype(np.int64), name(part)) for part, values in constants.items()
    )
    said = f"{tensor.name} must have 1 to {max_frames} in the dimension T"  # onnxruntime's error quotes it
    steps = [
        helper.make_node("Shape", [tensor.name], [name("time")], start=1, end=2),
        helper.make_node("Add", [name("time"), name("before")], [name("index")]),
        helper.make_node("Gather", [name("numbers"), name("index")], [name("not_above")], f"{said}, not more"),
        helper.make_node("Add", [name("time"), name("behind")], [name("index_from_end")]),
        helper.make_node("Gather", [name("zeros"), name("index_from_end")], [name("not_zero")], f"{said}, not 0"),
        helper.make_node("Shape", [tensor.name], [name("clips")], start=0, end=1),
        # Had the shape only one dimension that is computed, onnxruntime would make that −1 and drop the tables.
        helper.make_node("Add", [name("clips"), name("not_zero")], [name("batch")]),
        helper.make_node("Concat", [name("batch"), name("not_above"), name("rest")], [name("shape")], axis=0),
        helper.make_node("Reshape", [tensor.name, name("shape")], [bounded]),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*steps, *rest])
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
