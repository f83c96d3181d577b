"""Measure how close each graph comes to the peak of this machine, and how its cost grows.

    python benchmarks/roofline.py [--quick] [--rounds N] [--json FILE] [--plot PNG]

The roof is measured in the same run: the fastest fp32 matrix product of NumPy, PyTorch and onnxruntime over several
sizes, and the bandwidth of copying an array that no cache can hold (Williams, Waterman and Patterson, "Roofline", CACM
2009). With a C compiler, ``fma_peak.py`` measures the FMA peak, which the vector units could reach without loading and
storing. A graph's floating-point operations are counted by PyTorch's ``FlopCounterMode`` (matrix products only, two for
each multiply-add) on the exported graph. Its traffic is the smallest possible: weights, inputs and outputs once.
Achieved FLOP/s are onnxruntime's in this process, on all cores.

The script also measures the encoder's time over clips B, frames T and the image's size, and the head's over B. From
onnxruntime's own profile it takes the share of the encoder's time (one clip) outside matrix products, by operator.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from bisect import bisect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from common import COLOURS, MARKERS, figure, figures, in_words, parsed, parser, take_turns, write
from fma_peak import multiply_adds
from random_model import exported, random_checkpoint

from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import stdout, table
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor, open_session
from dfer_deploy.specs import MAX_FRAMES

BATCHES = (1, 2, 4)
TIMES = (1, 4, 8, MAX_FRAMES)
PRODUCTS = {True: (256, 512), False: (512, 1024, 2048)}
"""Rows, columns and depth of the square products that search for the peak."""

IMAGE_SIZES = {True: (32, 64), False: (160, 224, 288)}
COPIED_BYTES = {True: 64 << 20, False: 256 << 20}
PRODUCTS_NAME = "matrix products"
MATRIX_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
"""Operators of onnxruntime that are matrix products, including those with fused additions."""

SECONDS = {True: 0.1, False: 0.5}
"""Duration for which a short contestant is repeated in each round, with --quick and without."""

Point = dict[str, Any]


def main() -> None:
    arguments = parsed(parser(__file__, __doc__))
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), rounds=arguments.rounds, quick=arguments.quick)
    table(
        "fp32 in onnxruntime: median (range) over the rounds",
        ("", "B", "T", "pixels", "GFLOP", "FLOP/byte", "seconds", "GFLOP/s", "of the fastest product",
         "of the FMA peak"),
        [
            (point["graph"], point["batch"], point["time"], point["image_size"], f"{point['flop'] / 1e9:.3g}",
             f"{point['flop'] / point['bytes']:.3g}", in_words(point["seconds"]), in_words(point["gflop_per_s"]),
             in_words(point["of_peak"]), in_words(point["of_fma_peak"]) if "of_fma_peak" in point else "")
            for point in result["points"]
        ],
    )  # fmt: skip
    fma = ", the FMA peak was not measured, since no C compiler works here"
    if "fma_peak_gflop_per_s" in result:
        fma = f", {in_words(result['of_fma_peak'])} of the FMA peak of {in_words(result['fma_peak_gflop_per_s'])}"
    stdout.print(
        f"fastest product: {in_words(result['peak_gflop_per_s'])} GFLOP/s ({result['peak_of']}){fma}; "
        f"copying: {in_words(result['copy_gb_per_s'])} GB/s",
        markup=False,
    )
    shares = sorted(((found["median"], name) for name, found in result["operators"].items()), reverse=True)
    stdout.print(
        f"the image encoder's time: {', '.join(f'{name} {100 * share:.2g} %' for share, name in shares[:7])}; "
        f"all but matrix products {in_words(result['not_matrix_products_percent'])} %",
        markup=False,
    )
    write(arguments, result, draw(result, quick=arguments.quick))


def measure(folder: Path, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Let the products that search for the peak, the copy and every shape of both graphs take turns."""
    points: dict[str, Point] = {}
    with ExitStack() as stack:
        roof, flop_of = matrix_products(folder, PRODUCTS[quick])
        work: dict[str, Callable[[], object]] = dict(roof)
        fma = multiply_adds(folder)
        if fma is not None:
            work["FMA"] = fma[0]
        source = np.ones(COPIED_BYTES[quick] // 4, np.float32)
        target = np.zeros_like(source)
        work["copy"] = lambda: np.copyto(target, source)
        own_size = 32 if quick else 224
        for size in sorted({*IMAGE_SIZES[quick], own_size}):
            checkpoint = random_checkpoint(folder, quick=quick, image_size=size)
            bundle = exported(checkpoint)
            predictor = stack.enter_context(OnnxRuntimePredictor.from_bundle(bundle))
            shapes = [(1, MAX_FRAMES)]
            if size == own_size:
                shapes = [(batch, MAX_FRAMES) for batch in BATCHES] + [(1, time) for time in TIMES[:-1]]
            clips = drawn_clips(max(BATCHES), size)
            for batch, time in shapes:
                name = f"image encoder, B {batch}, T {time}, {size} pixels"
                frames = np.ascontiguousarray(clips[:batch, :time])
                work[name] = lambda p=predictor, f=frames: p.encode(f)  # type: ignore[misc]
                points[name] = {"graph": "image encoder", "batch": batch, "time": time, "image_size": size}
                if size == own_size and time == MAX_FRAMES:
                    features = predictor.encode(frames)
                    name = f"temporal head, B {batch}"
                    work[name] = lambda p=predictor, f=features: p.classify(f)  # type: ignore[misc]
                    points[name] = {"graph": "temporal head", "batch": batch, "time": time, "image_size": size}
            if size == own_size:
                clip = np.ascontiguousarray(clips[:1])
                operators = operator_shares(bundle.image_encoder_onnx, clip, folder, runs=2 * rounds)
            count(checkpoint, [point for point in points.values() if point["image_size"] == size])
        seconds = take_turns(work, rounds, seconds=SECONDS[quick])
    speeds = {name: flop / statistics.median(seconds[name]) for name, flop in flop_of.items()}
    best = max(speeds, key=lambda name: speeds[name])
    peak = [flop_of[best] / value for value in seconds[best]]
    for name, point in points.items():
        achieved = [point["flop"] / value for value in seconds[name]]
        point["seconds"] = figures(seconds[name])
        point["gflop_per_s"] = figures([value / 1e9 for value in achieved])
        point["of_peak"] = figures([a / b for a, b in zip(achieved, peak, strict=True)])
        if fma is not None:
            point["of_fma_peak"] = figures([a * b / fma[1] for a, b in zip(achieved, seconds["FMA"], strict=True)])
    of_fma = {} if fma is None else {
        "fma_peak_gflop_per_s": figures([fma[1] / value / 1e9 for value in seconds["FMA"]]),
        "of_fma_peak": figures([a * b / fma[1] for a, b in zip(peak, seconds["FMA"], strict=True)]),
    }  # fmt: skip
    return of_fma | {
        "peak_of": best,
        "peak_gflop_per_s": figures([value / 1e9 for value in peak]),
        "products_gflop_per_s": {name: speed / 1e9 for name, speed in speeds.items()},
        "not_matrix_products_percent": figures([100 * (1 - share) for share in operators[PRODUCTS_NAME]]),
        "operators": {name: figures(shares) for name, shares in operators.items()},
        "copy_gb_per_s": figures([2 * source.nbytes / value / 1e9 for value in seconds["copy"]]),
        "points": list(points.values()),
    }


def matrix_products(folder: Path, sizes: tuple[int, ...]) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Return square fp32 products in three libraries, and their floating-point operations, by name."""
    import onnx
    import torch

    shape = ["m", "k"]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("a", "b", "c")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "product.onnx"
    onnx.save(model, path)
    session = open_session(path, 0)
    work: dict[str, Callable[[], object]] = {}
    flop: dict[str, float] = {}
    for size in sizes:
        a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
        tensor = torch.from_numpy(a)
        for library, product in (
            ("NumPy", lambda a=a: a @ a),
            ("PyTorch", lambda t=tensor: t @ t),
            ("onnxruntime", lambda a=a: session.run(["c"], {"a": a, "b": a})),
        ):
            work[f"{library}, {size}³"] = product
            flop[f"{library}, {size}³"] = 2.0 * size**3
    return work, flop


def operator_shares(path: Path, frames: Any, folder: Path, *, runs: int) -> dict[str, list[float]]:
    """Return the share of each operator in the time of all operators, run by run, from onnxruntime's profile.

    All matrix products are one entry. A run is the answer to one request; the first two are not counted.
    """
    session = open_session(path, 0, profile=folder / "profile")
    for _ in range(2 + runs):
        session.run(None, {"frames": frames})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[2:]
    spent: dict[str, list[float]] = {}
    for event in events:
        run = bisect(starts, event["ts"]) - 1
        if run >= 0 and event["name"].endswith("_kernel_time"):
            name = event["args"]["op_name"]
            name = PRODUCTS_NAME if name in MATRIX_PRODUCTS else name
            spent.setdefault(name, [0.0] * runs)[run] += event["dur"]
    totals = [sum(values) for values in zip(*spent.values(), strict=True)]
    return {
        name: [value / total for value, total in zip(values, totals, strict=True)] for name, values in spent.items()
    }


def count(checkpoint: Path, points: list[Point]) -> None:
    """Add ``flop`` and ``bytes`` to the points of one checkpoint.

    The operations are counted on the exported modules, on the device "meta", so nothing is computed.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.export.graphs import ImageEncoderGraph, TemporalHeadGraph

    model = load_checkpoint(checkpoint).build_model()
    with torch.inference_mode():
        graphs = {"image encoder": ImageEncoderGraph(model, "fp32"), "temporal head": TemporalHeadGraph(model, "fp32")}
    length, classes = model.spec.clip.embed_dim, model.spec.prompts.num_classes
    for point in points:
        graph = graphs[point["graph"]].to("meta")
        batch, time, size = point["batch"], point["time"], point["image_size"]
        pixels, features = batch * time * size * size * 3, batch * time * length * 4
        if point["graph"] == "image encoder":
            example = torch.zeros(batch, time, size, size, 3, dtype=torch.uint8, device="meta")
            moved = pixels + features
        else:
            example = torch.zeros(batch, time, length, device="meta")
            moved = features + 2 * batch * classes * 4
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            graph(example)
        point["flop"] = float(counter.get_total_flops())
        point["bytes"] = float(moved + sum(weight.numel() * 4 for weight in graph.parameters()))


def draw(result: Mapping[str, Any], *, quick: bool) -> Any:
    """Draw the roofline, and the encoder's time over B, T and image size against growth proportional to the work."""
    picture, (roofline, growth, size) = figure("What the graphs make of this machine", 3, quick=quick)
    points = result["points"]
    peak, bandwidth = result["peak_gflop_per_s"]["median"], result["copy_gb_per_s"]["median"]
    intensities = [point["flop"] / point["bytes"] for point in points]
    x = np.geomspace(min(*intensities, peak / bandwidth) / 3, max(intensities) * 3, 200)
    roofline.plot(x, np.minimum(peak, bandwidth * x), color="black", linewidth=1.5)
    # The text is above the roof, because the points are below it.
    roofline.text(x[-1], peak * 1.02, f"{result['peak_of']}: {peak:.0f} GFLOP/s", ha="right", va="bottom", size=7)
    for place, graph in enumerate(("image encoder", "temporal head")):
        shown = [point for point in points if point["graph"] == graph]
        roofline.plot(
            [point["flop"] / point["bytes"] for point in shown],
            [point["gflop_per_s"]["median"] for point in shown],
            MARKERS[place], color=COLOURS[place], markersize=5, label=graph,
        )  # fmt: skip
    if "fma_peak_gflop_per_s" in result:
        fma = result["fma_peak_gflop_per_s"]["median"]
        roofline.axhline(fma, color="0.4", linestyle=":", linewidth=1.2)
        roofline.text(x[0], fma * 1.08, f"FMA: {fma:.0f} GFLOP/s", size=8)
    roofline.set_xscale("log", base=10)
    roofline.set_yscale("log", base=2)
    roofline.set_ylim(top=peak * 2)
    for axis in (roofline.xaxis, roofline.yaxis):
        axis.set_major_formatter("{x:g}")
    roofline.set_xlabel("FLOP per byte (weights, inputs, outputs once)")
    roofline.set_ylabel("GFLOP/s")
    roofline.legend(frameon=False, fontsize=8, loc="lower right")
    encoder = [point for point in points if point["graph"] == "image encoder"]
    own = {point["image_size"] for point in encoder if point["batch"] > 1}
    frames = sorted(
        (point for point in encoder if point["image_size"] in own), key=lambda point: point["batch"] * point["time"]
    )
    sizes = sorted(
        (point for point in encoder if (point["batch"], point["time"]) == (1, MAX_FRAMES)),
        key=lambda point: point["image_size"],
    )
    for axes, shown, places, label in (
        (growth, frames, [p["batch"] * p["time"] for p in frames], "frames in a request (B · T)"),
        (size, sizes, [p["image_size"] for p in sizes], "pixels (one clip of 16 frames)"),
    ):
        medians = [point["seconds"]["median"] for point in shown]
        below = [point["seconds"]["median"] - point["seconds"]["low"] for point in shown]
        above = [point["seconds"]["high"] - point["seconds"]["median"] for point in shown]
        axes.errorbar(places, medians, [below, above], color=COLOURS[0], marker="o", capsize=2, label="measured")
        last = shown[-1]
        proportional = [point["flop"] / last["flop"] * last["seconds"]["median"] for point in shown]
        axes.plot(places, proportional, "--", color="0.4", label="as the operations grow")
        axes.set_xticks(places)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("seconds, image encoder")
        axes.legend(frameon=False, fontsize=8)
    return picture


if __name__ == "__main__":
    main()
