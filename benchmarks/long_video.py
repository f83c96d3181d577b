"""Memory of ``predict`` on videos of different lengths: it must not grow with the length.

    python benchmarks/long_video.py [--quick] [--rounds N] [--json FILE] [--plot PNG]

Every contestant is ``dfer-deploy predict`` on a drawn video of 64 × 64 pixels, in a process of its own, which writes
CSV, JSON, the timeline and the crops: a video of two minutes and one of two hours at 5 frames a second, for which the
annotated video is written too, and one of two hours at 25 frames a second (with --quick: 10 seconds and a minute).
The model is tiny (--vit: ViT-B/32), since the length is the question. No faces are looked for: the pictures are
faces already. Memory is the peak of the resident set.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from cold_start import LAUNCHER
from common import draw_bars, exported, figure, figures, in_words, parsed, parser, random_checkpoint, write

from dfer_deploy.bundle import Bundle
from dfer_deploy.console import progress_bar, table

_SIDE = 64
_ANNOTATED = ", 5/s"


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--vit", action="store_true", help="ViT-B/32 in the tiny model's place")
    arguments = parsed(options)
    lengths = [(10, 5), (60, 5), (60, 25)] if arguments.quick else [(120, 5), (7200, 5), (7200, 25)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = exported(random_checkpoint(folder, quick=not arguments.vit))
        videos = {f"{seconds} s, {rate}/s": drawn_video(folder, seconds, rate) for seconds, rate in lengths}
        result = measure(bundle, videos, folder, rounds=arguments.rounds)
    table(
        "predict on a video: median (range) over the rounds",
        ("video", "seconds", "peak GB"),
        [(name, in_words(row["seconds"]), in_words(row["peak_gb"])) for name, row in result.items()],
    )
    first, *others = (row["peak_gb"]["median"] for row in result.values())
    grown_mb = 1000 * (max(others) - first)
    picture, (seconds, memory) = figure("A video's length", 2, quick=not arguments.vit)
    draw_bars(seconds, "seconds", {name: row["seconds"]["rounds"] for name, row in result.items()})
    peaks = {name: row["peak_gb"]["rounds"] for name, row in result.items()}
    draw_bars(memory, f"peak memory, GB (grows by {grown_mb:.0f} MB)", peaks)
    write(arguments, {"videos": result, "grown_mb": grown_mb, "vit": arguments.vit}, picture)


def measure(bundle: Bundle, videos: dict[str, Path], folder: Path, *, rounds: int) -> dict[str, Any]:
    """Seconds and peak memory of one process for each video and round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in videos}
    names = {"json": "out.json", "csv": "out.csv", "timeline": "timeline.png", "crops": "crops.png"}
    outputs = [word for name, file in names.items() for word in (f"--{name}", str(folder / file))]
    annotated = ["--video", str(folder / "out.mp4")]
    with progress_bar() as bar:
        for _ in bar.track(range(rounds), description="predict"):
            for name, video in videos.items():
                more = annotated if name.endswith(_ANNOTATED) else []
                command = [sys.executable, "-m", "dfer_deploy", "predict", "--bundle", str(bundle.path), str(video)]
                done = subprocess.run(
                    [sys.executable, "-c", LAUNCHER, *command, "--faces", "none", *outputs, *more],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
                seconds, peak_kib = map(float, done.stdout.splitlines()[-1].split())
                found[name].append((seconds, peak_kib * 1024 / 1e9))
    return {
        name: {"seconds": figures([s for s, _ in rows]), "peak_gb": figures([gb for _, gb in rows])}
        for name, rows in found.items()
    }


def drawn_video(folder: Path, seconds: int, rate: int) -> Path:
    """A video of a square that moves over noise."""
    path = folder / f"{seconds}_{rate}.mp4"
    noise = np.random.default_rng(0).integers(0, 90, (_SIDE, _SIDE, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = _SIDE, _SIDE, "yuv420p"
        stream.time_base = Fraction(1, rate)
        for index in range(seconds * rate):
            pixels = noise.copy()
            place = index % (_SIDE - 16)
            pixels[place : place + 16, place : place + 16] = (250, 200, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
