"""``dfer-deploy demo``"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import av
import click
import numpy as np
from rich.markup import escape

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.integrity import is_bundle, open_bundle
from dfer_deploy.clips.annotations import read_annotations
from dfer_deploy.clips.reading import frame_paths, image_from_file
from dfer_deploy.console import stdout, table
from dfer_deploy.errors import ExitCode
from dfer_deploy.files import atomic_file
from dfer_deploy.triton.environment import triton_environment

_VIDEO_FPS = 10
"""Frames per second of the demo's video."""


@click.command()
@click.option(
    "-o", "--output", "root", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True
)
@click.pass_context
def demo(ctx: click.Context, root: Path) -> None:
    """Run all steps: draw faces, train, export, serve, verify, measure, and ask about a video.

    The faces are drawn, so the accuracy says nothing about real ones. Steps whose results exist are skipped.
    """
    faces, model, bundle = root / "faces", root / "model", root / "bundle"
    checkpoint, video, page = model / "last.pt", root / "video.mp4", root / "report.html"
    seconds: dict[str, float] = {}

    def run(*words: object, accepted: Sequence[int] = (ExitCode.DONE,)) -> None:
        command = [str(word) for word in words]
        stdout.print(f"\n[bold]$ dfer-deploy {escape(shlex.join(command))}[/]")
        start = time.perf_counter()
        group: Any = ctx.find_root().command
        status = group.main(command, prog_name="dfer-deploy", standalone_mode=False)
        seconds[command[0]] = time.perf_counter() - start
        if isinstance(status, int) and status not in accepted:
            ctx.exit(status)

    triton_environment()  # fails now, not after minutes of work, if this machine cannot run the server
    run("synthetic", faces)
    trained = _trained(checkpoint, faces)
    if trained == "whole":
        stdout.print(f"\n{checkpoint} is by the present recipe: training is skipped", markup=False)
    else:
        run("train", "synthetic", "--data", faces, "-o", model, *(["--fresh"] if trained == "otherwise" else []))
    run("export", checkpoint, "-o", bundle, *(["--force"] if is_bundle(bundle) else []))
    opened = open_bundle(bundle)
    if not video.exists():
        test_clips = read_annotations(faces / "test.txt", opened.spec.prompts.num_classes)
        longest = max(test_clips, key=lambda clip: clip.listed_frames)
        write_video(video, frame_paths(longest.path))
    with served_bundle(opened) as endpoints:
        url = ("--url", endpoints.grpc_url)
        verification, measurement, answer = root / "verify.json", root / "bench.json", root / "predict.json"
        data = ("--checkpoint", checkpoint, "--data", faces / "test.txt")
        # 630 clips prove half a point only if no answer changes. One changed answer leaves it undecided, which is
        # accepted.
        accepted = (ExitCode.DONE, ExitCode.UNDECIDED)
        run("verify", bundle, *url, *data, "--json", verification, accepted=accepted)
        run("bench", bundle, *url, "--checkpoint", checkpoint, "--rounds", 3, "--json", measurement)
        run("predict", *url, "--whole", video, "--json", answer)
    run("report", verification, "--bench", measurement, "--data", faces / "test.txt", "-o", page)
    _summary(seconds, *(json.loads(path.read_text(encoding="utf-8")) for path in (verification, measurement, answer)))
    stdout.print("look at:")
    for path in (page, faces / "contact_sheet.png", model / "curves.png", model / "confusion.png"):
        stdout.print(f"  {path}", markup=False)
    stdout.print("next, with your own checkpoint and video:")
    for line in (
        "inspect model_best.pth",
        "export model_best.pth -o my.bundle",
        "verify my.bundle --checkpoint model_best.pth --data test_list.txt --data-root /path/to/clips",
        "serve my.bundle",
        "predict --url grpc://127.0.0.1:8001 face.mp4",
    ):
        stdout.print(f"  dfer-deploy {line}", markup=False)


def _trained(checkpoint: Path, faces: Path) -> Literal["whole", "partly", "otherwise"]:
    """Return whether the present recipe would give the checkpoint, can continue from it, or differs from its recipe."""
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.train.recipe import recipe_from_toml

    if not checkpoint.exists():
        return "partly"
    recipe = recipe_from_toml("synthetic")
    wanted = replace(recipe, data=replace(recipe.data, root=str(faces))).to_dict()
    found = load_checkpoint(checkpoint).provenance
    if found.get("recipe") != wanted:
        return "otherwise"
    return "whole" if found.get("epoch") == recipe.optim.epochs else "partly"


def _summary(
    seconds: dict[str, float], verification: dict[str, Any], measurement: dict[str, Any], answer: dict[str, Any]
) -> None:
    def throughput(contestant: dict[str, Any]) -> str:
        rounds = contestant.get("throughput") or [load["throughput"] for load in contestant["rounds"]]
        return f"{np.median(rounds):.1f} clips/s"

    truth, served = verification["truth"], verification["comparisons"][-1]
    result = answer["results"][0]
    best = max(measurement["served"], key=lambda s: np.median([load["throughput"] for load in s["rounds"]]))
    outcomes = {
        "synthetic": "drawn faces, 7 classes",
        "train": f"UAR {truth['uar']:.1f} %, WAR {truth['war']:.1f} % on unseen drawn identities",
        "export": "two ONNX graphs and a Triton repository",
        "verify": f"{verification['clips']} clips served: {len(served['flips'])} answers changed, "
        f"UAR {served['uar']:.1f} %, largest logit difference {served['max_logit_difference']:.1g}, "
        f"{served['equivalence']['verdict']} within ±{served['equivalence']['margin']:g} points",
        "bench": f"{throughput(best)} served ({best['concurrency']} in flight), "
        + ", ".join(f"{throughput(c)} {c['name']}" for c in measurement["in_process"]),
        "predict": f"{Path(result['input']).name}: {result['expression']} "
        f"({result['probabilities'][result['expression']]:.2f})",
    }
    table(
        "all steps",
        ("step", "result", "seconds"),
        [(name, text, f"{seconds[name]:.1f}" if name in seconds else "skipped") for name, text in outcomes.items()],
    )


def write_video(path: Path, frames: Sequence[Path]) -> None:
    """Write a video of image files of one size, at 10 frames a second, atomically."""
    images = [image_from_file(frame) for frame in frames]
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=_VIDEO_FPS)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))  # type: ignore[no-untyped-call]
        container.mux(stream.encode(None))
