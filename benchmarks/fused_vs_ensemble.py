"""Two graphs joined by Triton's ensemble against one graph that holds both.

    python benchmarks/fused_vs_ensemble.py [--quick] [--rounds N] [--json FILE] [--plot PNG]

The bundle's graphs are merged with onnx's own ``compose`` into one, which a second model of the same server runs: same
``model.py``, same options, one process in the place of two. The contestants take turns, in this process (two sessions
against one) and served with 1, 2 and 4 requests in flight. They must agree in the logits first.

What two graphs buy is not measured here: an image encoder whose features a stream keeps, and a head that can be
replaced alone.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from common import draw_bars, figure, figures, in_words, parsed, parser, take_turns, write
from google.protobuf import text_format
from random_model import exported, random_checkpoint
from tritonclient.grpc import model_config_pb2

from dfer_deploy import triton_models
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.console import progress_bar, table
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor, open_session
from dfer_deploy.triton.environment import triton_environment
from dfer_deploy.triton.perf_analyzer import measure_load
from dfer_deploy.triton.server import TritonServer
from dfer_deploy.verification.limits import LIMITS

CONCURRENCIES = {True: (1, 2), False: (1, 2, 4)}
SECONDS = {True: 0.5, False: 4.0}


def main() -> None:
    arguments = parsed(parser(__file__, __doc__))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = exported(random_checkpoint(folder, quick=arguments.quick))
        result = measure(bundle, folder, rounds=arguments.rounds, quick=arguments.quick)
    rows = [
        (where, in_words(row["two"]), in_words(row["one"]), in_words(row["one_against_two"]))
        for where, row in result["clips_per_s"].items()
    ]
    table("clips/s: median (range) over the rounds", ("", "two graphs", "one graph", "one / two"), rows)
    picture, (ratios,) = figure("One graph against two", 1, width=7.0, height=3.0, quick=arguments.quick)
    found = {where: row["one_against_two"]["rounds"] for where, row in result["clips_per_s"].items()}
    draw_bars(ratios, "throughput of one graph / of two (bar: median, dots: rounds)", found)
    ratios.axvline(1, color="0.4", linestyle="--", linewidth=1)
    write(arguments, result, picture)


def measure(bundle: Bundle, folder: Path, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Merges the graphs in ``folder``, serves both arrangements at once, and lets them take turns."""
    clips = drawn_clips(2, bundle.spec.clip.vision.image_size)
    fused = folder / "fused.onnx"
    fuse(bundle, fused)
    repository = folder / "repository"
    model = add_fused_model(bundle, fused, repository)
    environment = triton_environment()
    with ExitStack() as stack:
        two = stack.enter_context(OnnxRuntimePredictor.from_bundle(bundle))
        one = open_session(fused, 0)  # as many threads as the encoder of the two
        expected = two.predict(clips).logits
        difference = float(np.abs(one.run(["logits"], {"frames": clips})[0] - expected).max())
        if not difference <= LIMITS["fp32"].logits:
            raise RuntimeError(f"the merged graph does not compute the same: its logits differ by {difference}")
        contestants = {
            "two": lambda: two.predict(clips[:1]),
            "one": lambda: one.run(["logits", "probabilities"], {"frames": clips[:1]}),
        }
        seconds = take_turns(contestants, rounds, seconds=SECONDS[quick])
        speeds = {"in process": {name: [1 / value for value in values] for name, values in seconds.items()}}
        requests = min(500, max(8, round(SECONDS[quick] / min(seconds["two"]))))
        server = stack.enter_context(TritonServer(environment, repository))
        names = {"two": bundle.manifest.name, "one": model}
        places = {number: f"served, {number} in flight" for number in CONCURRENCIES[quick]}
        speeds |= {where: {"two": [], "one": []} for where in places.values()}
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("", total=rounds * 2 * len(places))
        for turn in range(rounds):
            for concurrency, where in places.items():
                for which in ("two", "one") if turn % 2 == 0 else ("one", "two"):
                    bar.update(task, description=f"{which}: {where}")
                    (load,) = measure_load(
                        environment, server.endpoints.grpc_url, names[which], clips, [concurrency],
                        requests=max(requests, 4 * concurrency),
                    )  # fmt: skip
                    speeds[where][which].append(load.throughput)
                    bar.advance(task)
    return {
        "logit_difference": difference,
        "clips_per_s": {
            where: {
                **{name: figures(values) for name, values in found.items()},
                "one_against_two": figures([a / b for a, b in zip(found["one"], found["two"], strict=True)]),
            }
            for where, found in speeds.items()
        },
    }


def fuse(bundle: Bundle, path: Path) -> None:
    """Writes one ONNX file from frames to logits and probabilities."""
    import onnx

    encoder, head = (
        # The values' names are the exporter's and occur in both.
        onnx.compose.add_prefix(onnx.load(file), prefix)
        for file, prefix in ((bundle.image_encoder_onnx, "encoder/"), (bundle.temporal_head_onnx, "head/"))
    )
    merged = onnx.compose.merge_models(encoder, head, io_map=[("encoder/frame_features", "head/frame_features")])
    outside = {f"{part}/{name}": name for part, name in (("encoder", "frames"), ("head", "logits"), ("head", "probabilities"))}  # fmt: skip # noqa: E501
    for value in (*merged.graph.input, *merged.graph.output):
        value.name = outside[value.name]
    for node in merged.graph.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
        node.output[:] = [outside.get(name, name) for name in node.output]
    onnx.checker.check_model(merged)
    onnx.save(merged, path)


def add_fused_model(bundle: Bundle, fused: Path, repository: Path) -> str:
    """Copies the bundle's repository and adds a model that runs the fused graph like the image encoder; its name."""
    shutil.copytree(bundle.model_repository, repository)
    encoder, head = (
        text_format.Parse((repository / name / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig())
        for name in (bundle.contract.image_encoder.name, bundle.contract.temporal_head.name)
    )
    source = repository / encoder.name / str(bundle.manifest.version)
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(encoder)
    config.name = f"{bundle.manifest.name}_fused"
    del config.output[:]
    config.output.extend(head.output)
    for output in config.output:
        output.label_filename = ""
    folder = repository / config.name / "1"
    folder.mkdir(parents=True)
    shutil.copy(fused, folder / "model.onnx")
    for name in triton_models.onnx_model_sources():
        shutil.copy(source / name, folder)
    (folder.parent / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return str(config.name)


if __name__ == "__main__":
    main()
