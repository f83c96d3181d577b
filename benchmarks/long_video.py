"""Measure the memory of ``predict`` on videos of different lengths, which must not grow with the length.

    python benchmarks/long_video.py [--quick] [--rounds N] [--json FILE] [--plot PNG]

Every contestant is ``dfer-deploy predict`` on a drawn video, in a separate process, which writes CSV, JSON, the
timeline and the crops. Each group has a shorter video and longer ones:

- ``cropped, 64 × 64``: without face detection. Two minutes and two hours at 5 frames a second, for which the annotated
  video is written too, and two hours at 25 frames a second (with --quick: 10 seconds and a minute).
- ``faces, 640 × 360`` and ``faces, 1920 × 1080``: two drawn faces at 25 frames a second are found and followed,
  with two detections a second; one minute and twenty minutes (with --quick: 5 and 20 seconds). A round takes about
  twenty minutes.

The model is tiny (--vit: ViT-B/32), because only the length matters. Memory is the peak of the resident set.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from cold_start import LAUNCHER
from common import draw_bars, figure, figures, in_words, parsed, parser, write
from PIL import Image
from random_model import exported, random_checkpoint
from scenes import HEIGHT, WIDTH, Actor, Scene, frames_of, persons_drawn

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.faces import open_detector
from dfer_deploy.console import progress_bar, table

_SIDE = 64
_LOOP_S = 4
_FACE_SIZES = ((WIDTH, HEIGHT), (3 * WIDTH, 3 * HEIGHT))


@dataclass(frozen=True)
class Contestant:
    """A video and the options of its prediction. Its growth is relative to the first contestant of its group."""

    group: str
    seconds: int
    rate: int
    video: Path
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.group}, {self.seconds} s, {self.rate}/s"


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--vit", action="store_true", help="ViT-B/32 in the tiny model's place")
    arguments = parsed(options)
    open_detector()  # fails now if its packages are missing
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = exported(random_checkpoint(folder, quick=not arguments.vit))
        contestants = [*cropped(folder, quick=arguments.quick), *with_faces(folder, quick=arguments.quick)]
        result = measure(bundle, contestants, folder, rounds=arguments.rounds)
    table(
        "predict on a video: median (range) over the rounds",
        ("video", "seconds", "peak GB"),
        [(name, in_words(row["seconds"]), in_words(row["peak_gb"])) for name, row in result.items()],
    )
    grown_mb = {}
    for group, members in itertools.groupby(contestants, lambda contestant: contestant.group):
        first, *others = (result[member.name]["peak_gb"]["median"] for member in members)
        grown_mb[group] = 1000 * (max(others) - first)
    picture, (seconds, memory) = figure("A video's length", 2, width=6.0, quick=not arguments.vit)
    draw_bars(seconds, "seconds", {name: row["seconds"]["rounds"] for name, row in result.items()})
    peaks = {name: row["peak_gb"]["rounds"] for name, row in result.items()}
    draw_bars(memory, f"peak memory, GB (grows by at most {max(grown_mb.values()):.0f} MB)", peaks)
    write(arguments, {"videos": result, "grown_mb": grown_mb, "vit": arguments.vit}, picture)


def measure(bundle: Bundle, contestants: Sequence[Contestant], folder: Path, *, rounds: int) -> dict[str, Any]:
    """Return the seconds and the peak memory of one process for each video and round."""
    found: dict[str, list[tuple[float, float]]] = {contestant.name: [] for contestant in contestants}
    names = {"json": "out.json", "csv": "out.csv", "timeline": "timeline.png", "crops": "crops.png"}
    outputs = [word for name, file in names.items() for word in (f"--{name}", str(folder / file))]
    with progress_bar() as bar:
        for _ in bar.track(range(rounds), description="predict"):
            for contestant in contestants:
                command = [sys.executable, "-m", "dfer_deploy", "predict", "--bundle", str(bundle.path)]
                done = subprocess.run(
                    [sys.executable, "-c", LAUNCHER, *command, str(contestant.video), *contestant.options, *outputs],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
                seconds, peak_kib = map(float, done.stdout.splitlines()[-1].split())
                found[contestant.name].append((seconds, peak_kib * 1024 / 1e9))
    return {
        name: {"seconds": figures([s for s, _ in rows]), "peak_gb": figures([gb for _, gb in rows])}
        for name, rows in found.items()
    }


def cropped(folder: Path, *, quick: bool) -> Iterator[Contestant]:
    """Yield videos of a square that moves over noise."""
    noise = np.random.default_rng(0).integers(0, 90, (_SIDE, _SIDE, 3), np.uint8)

    def picture(place: int) -> Image.Image:
        pixels = noise.copy()
        pixels[place : place + 16, place : place + 16] = (250, 200, 90)
        return Image.fromarray(pixels)

    pictures = [picture(place) for place in range(_SIDE - 16)]
    for seconds, rate in [(10, 5), (60, 5), (60, 25)] if quick else [(120, 5), (7200, 5), (7200, 25)]:
        video = folder / f"{seconds}_{rate}.mp4"
        write_loop(video, pictures, seconds, rate)
        annotated = ("--video", str(folder / "out.mp4")) if rate == 5 else ()
        yield Contestant(f"cropped, {_SIDE} × {_SIDE}", seconds, rate, video, ("--faces", "none", *annotated))


def with_faces(folder: Path, *, quick: bool) -> Iterator[Contestant]:
    """Yield videos of two drawn faces that sway."""
    rate = 25
    actors = tuple(
        Actor(place, lambda t, x=x: (x + 20 * math.sin(2 * math.pi * t / _LOOP_S), 170, 130))  # type: ignore[misc]
        for place, x in enumerate((180, 460))
    )
    scene = Scene(_LOOP_S, actors)
    pictures = [
        Image.fromarray(frame.image) for frame in frames_of(scene, persons_drawn(2, count=6 * _LOOP_S), 1 / rate)
    ]
    for size in _FACE_SIZES:
        sized = [picture.resize(size) for picture in pictures]
        for seconds in (5, 20) if quick else (60, 1200):
            video = folder / f"faces_{size[0]}_{seconds}.mp4"
            write_loop(video, sized, seconds, rate)
            group = f"faces, {size[0]} × {size[1]}"
            yield Contestant(group, seconds, rate, video, ("--frame-interval-s", "0.5"))


def write_loop(path: Path, pictures: Sequence[Image.Image], seconds: int, rate: int) -> None:
    """Write a video that repeats the pictures, which are encoded once."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"qscale": "3"})
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, "yuv420p"
        frames = [av.VideoFrame.from_image(picture) for picture in pictures]  # type: ignore[no-untyped-call]
        packets = [packet for frame in (*frames, None) for packet in stream.encode(frame)]
        for index in range(seconds * rate):
            original = packets[index % len(packets)]
            packet = av.Packet(bytes(original))
            packet.stream, packet.time_base = stream, Fraction(1, rate)
            packet.pts = packet.dts = index
            packet.is_keyframe = original.is_keyframe
            container.mux(packet)


if __name__ == "__main__":
    main()
