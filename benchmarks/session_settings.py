"""Settings of onnxruntime, on the image encoder and a clip or a frame, each against those of the embedded server.

    python benchmarks/session_settings.py [--frames N] [--quick] [--rounds N] [--json FILE] [--plot PNG]

The contestants take turns in this process, one session each, and must agree in the features first. Of the settings that
the server has (every optimisation, threads that wait for 100 µs before they sleep, onnxruntime's arena, arrays copied
out) one is changed at a time:

- sleeping: threads that wait for work sleep at once;
- spinning: they burn their core for onnxruntime's milliseconds;
- one thread;
- no arena: memory comes from the system each time;
- basic, extended: fewer graph optimisations;
- bound: the output is written into an array that was made before, none is copied;
- fused attention: onnxruntime's own operator ``MultiHeadAttention`` (its documentation, "Contrib Operators") in the
  place of each block's transposes, products and softmax.

What spinning costs others who need the cores is not seen here, where the contestant has them for itself.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from common import draw_bars, figure, figures, in_words, parsed, parser, take_turns, write
from onnx import helper, numpy_helper
from random_model import exported, random_checkpoint

from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import table
from dfer_deploy.cores import usable_cores

SERVED = "as served"
SECONDS = {True: 0.5, False: 4.0}

_CONTRIB = "com.microsoft"
_LEVELS = onnxruntime.GraphOptimizationLevel

SETTINGS: dict[str, dict[str, Any]] = {
    SERVED: {},
    "sleeping": {"allow_spinning": "0"},
    "spinning": {"spin_duration_us": ""},
    "one thread": {"intra_op_num_threads": 1},
    "no arena": {"enable_cpu_mem_arena": False},
    "basic": {"graph_optimization_level": _LEVELS.ORT_ENABLE_BASIC},
    "extended": {"graph_optimization_level": _LEVELS.ORT_ENABLE_EXTENDED},
}
"""Arguments of ``session``."""


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--frames", type=int, choices=range(1, 17), default=16, help="of the clip (default: 16)")
    arguments = parsed(options)
    with tempfile.TemporaryDirectory() as name:
        bundle = exported(random_checkpoint(Path(name), quick=arguments.quick))
        clip = np.ascontiguousarray(drawn_clips(1, bundle.spec.clip.vision.image_size)[:, : arguments.frames])
        contestants = sessions(bundle.image_encoder_onnx, clip, Path(name))
        seconds = take_turns(contestants, arguments.rounds, seconds=SECONDS[arguments.quick])
    served = seconds[SERVED]
    rows = {
        name: {
            "seconds": figures(values),
            "speed_against_served": figures([a / b for a, b in zip(served, values, strict=True)]),
        }
        for name, values in seconds.items()
    }
    table(
        f"the image encoder on {arguments.frames} frame(s) of one clip: median (range) over the rounds",
        ("", "seconds", f"speed / {SERVED}"),
        [(name, in_words(row["seconds"]), in_words(row["speed_against_served"])) for name, row in rows.items()],
    )
    picture, (axes,) = figure("Settings of onnxruntime", 1, width=7.0, height=3.4, quick=arguments.quick)
    draw_bars(
        axes,
        f"speed / {SERVED} (bar: median, dots: rounds)",
        {name: row["speed_against_served"]["rounds"] for name, row in rows.items()},
    )
    axes.axvline(1, color="0.4", linestyle="--", linewidth=1)
    write(arguments, {"frames": arguments.frames, "contestants": rows}, picture)


def sessions(encoder: Path, clip: Any, folder: Path) -> dict[str, Callable[[], object]]:
    """One call for each contestant, which have been seen to agree in the features."""
    fused = folder / "fused_attention.onnx"
    fuse_attention(encoder, fused)
    opened = {name: session(encoder, **changed) for name, changed in SETTINGS.items()}
    opened["fused attention"] = session(fused)
    contestants: dict[str, Callable[[], Any]] = {
        name: functools.partial(one.run, ["frame_features"], {"frames": clip}) for name, one in opened.items()
    }
    (expected,) = contestants[SERVED]()
    bound, output = session(encoder), np.empty_like(expected)
    binding = bound.io_binding()
    binding.bind_cpu_input("frames", clip)
    binding.bind_output("frame_features", "cpu", 0, np.float32, output.shape, output.ctypes.data)

    def run_bound() -> Any:
        bound.run_with_iobinding(binding)
        return [output]

    contestants["bound"] = run_bound
    for name, answer in contestants.items():
        error = float(np.abs(answer()[0] - expected).max() / np.abs(expected).max())
        if not error < 1e-4:
            raise RuntimeError(f"{name!r} does not compute the same: its features differ by {error:.2g}")
    return contestants


def session(graph: Path, *, allow_spinning: str = "1", spin_duration_us: str = "100", **attributes: Any) -> Any:
    """An onnxruntime session with the server's settings, but for what is given; an empty text is onnxruntime's own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for name, value in (("allow_spinning", allow_spinning), ("spin_duration_us", spin_duration_us)):
        if value:
            options.add_session_config_entry(f"session.intra_op.{name}", value)
    for name, value in ({"intra_op_num_threads": usable_cores()} | attributes).items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def fuse_attention(encoder: Path, output: Path) -> None:
    """Writes a copy of an exported encoder with one operator for each block's attention.

    It stands for all between the three projections, [N · S, W], and the reshape behind the second product. The scale is
    in the projection of the query already.

    Raises:
        RuntimeError: the graph is not of the form that the export writes.
    """
    model = onnx.load(encoder)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    read_by = {name: node for node in graph.node for name in node.input}

    def before(name: str, *operators: str) -> onnx.NodeProto:
        for operator in operators:
            node = made_by[name]
            if node.op_type != operator:
                raise RuntimeError(f"{node.op_type} stands where {operator} was expected; mend this for the new export")
            name = node.input[0]
        return node

    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        scores, second = made_by[softmax.input[0]], read_by[softmax.output[0]]
        splits = [before(name, "Transpose", "Reshape") for name in (*scores.input, second.input[1])]
        _, tokens, heads, width = numpy_helper.to_array(constants[splits[0].input[1]]).tolist()
        shape = numpy_helper.from_array(np.array([-1, tokens, heads * width]), f"{softmax.name}/shape")
        graph.initializer.append(shape)
        names = [f"{softmax.name}/{part}" for part in ("query", "key", "value")]
        new = [
            helper.make_node("Reshape", [split.input[0], shape.name], [name])
            for split, name in zip(splits, names, strict=True)
        ]
        fused = f"{softmax.name}/fused"
        new.append(helper.make_node("MultiHeadAttention", names, [fused], domain=_CONTRIB, num_heads=heads, scale=1.0))
        rows = read_by[read_by[second.output[0]].output[0]]
        rows.input[0] = fused
        place = list(graph.node).index(rows)
        for offset, node in enumerate(new):
            graph.node.insert(place + offset, node)
    # onnxruntime drops what nothing reads any more.
    model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    onnx.save(model, output)


if __name__ == "__main__":
    main()
