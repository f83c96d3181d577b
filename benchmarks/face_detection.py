"""Measure finding and following faces at known places, and the effect of the crop on the model's answer.

    python benchmarks/face_detection.py [--quick] [--videos VIDEO...] [--bundle BUNDLE] [--json FILE] [--plot PNG]

Faces are cut out of real videos with one face each (--videos), or drawn if none is given, and moved over a cluttered
ground (benchmarks/scenes.py). The box of a cutout is where the detector finds the face in the video itself, so the
errors are those of moving, scaling and covering, not of the definition of a box. The detector recognises few drawn
faces.

The answers are those of --bundle, else of random weights, which show how far the logits move but nothing about
accuracy. The largest and median change of a logit is over all windows of 16 frames and all classes.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import COLOURS, MARKERS, figure, parsed, parser, write
from PIL import Image as PillowImage
from random_model import exported, random_checkpoint
from scenes import SCENES, Cutout, Person, SceneFrame, clutter, frames_of, persons_drawn, persons_in, put

from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.clips.faces import (
    DEFAULT_MARGIN,
    DETECTION_SIDE,
    Box,
    Detection,
    FaceDetector,
    Image,
    face_crop,
    open_detector,
    overlaps,
)
from dfer_deploy.clips.timed import timed_frames
from dfer_deploy.clips.tracks import HOLD_S, SMOOTHING_S, FaceTracker
from dfer_deploy.console import progress, table
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Float32, Predictor
from dfer_deploy.specs import MAX_FRAMES

INTERVAL_S = 1 / 6
FOUND = 0.5
"""Smallest intersection over union at which a box counts as that of a face."""

HEIGHTS = (16, 24, 32, 48, 64, 96, 128)
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
JITTERS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
WINDOW_STEP = 4

Boxed = tuple[Image, Box]
Sequenced = tuple[SceneFrame, list[Detection]]


def main() -> None:
    options = parser(__file__, __doc__, rounds=False)
    options.add_argument("--videos", nargs="+", type=Path, default=[], help="with one face each (default: drawn faces)")
    options.add_argument("--bundle", type=Path, help="whose answers (default: random weights)")
    arguments = parsed(options)
    detector = open_detector()
    count = 12 if arguments.quick else 24
    persons = persons_in(arguments.videos, detector, count=count) or persons_drawn(4, count=count)
    scenes, seconds = detected_scenes(persons, detector, quick=arguments.quick)
    tracking = {
        name: {"detected": tracked(frames, 0.0), "smoothed": tracked(frames, SMOOTHING_S)}
        for name, frames in scenes.items()
    }
    print_tracking(tracking)
    sizes = {height: recall_of_size(persons, detector, height, quick=arguments.quick) for height in HEIGHTS}
    table(
        f"faces in images of 1920 × 1080, which are detected at {DETECTION_SIDE} pixels",
        ("height in pixels", *map(str, sizes)),
        [("recall", *(f"{recall:.0%}" for recall in sizes.values()))],
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(arguments.bundle) if arguments.bundle else None
        bundle = bundle or exported(random_checkpoint(Path(folder), quick=arguments.quick))
        with OnnxRuntimePredictor.from_bundle(bundle) as predictor:
            boxed = [frames_of_video(video, detector) for video in arguments.videos] or drawn_sequences(persons)
            crops = sensitivity(predictor, boxed, bundle.spec.clip.vision.image_size, quick=arguments.quick)
    print_sensitivity(crops)
    result: dict[str, Any] = {
        "faces": [video.name for video in arguments.videos] or "drawn",
        "answers": arguments.bundle.name if arguments.bundle else "random weights",
        "detection_seconds": {"median": float(np.median(seconds)), "low": min(seconds), "high": max(seconds)},
        "tracking": tracking,
        "recall_of_height": {str(height): recall for height, recall in sizes.items()},
        "sensitivity": crops,
    }
    table(
        "detection, seconds a frame of 640 × 360",
        ("median", "smallest", "largest"),
        [tuple(f"{value:.3f}" for value in result["detection_seconds"].values())],
    )
    write(arguments, result, draw(result, quick=arguments.quick))


def detected_scenes(
    persons: Sequence[Person], detector: FaceDetector, *, quick: bool
) -> tuple[dict[str, list[Sequenced]], list[float]]:
    """Return every scene with its detections, and the seconds that each detection took."""
    chosen = dict(itertools.islice(SCENES.items(), 3)) if quick else SCENES
    scenes: dict[str, list[Sequenced]] = {}
    seconds = []
    for name, scene in progress(chosen.items(), "scenes", len(chosen)):
        scenes[name] = []
        for frame in frames_of(scene, persons, INTERVAL_S):
            start = time.perf_counter()
            found = detector.detect(frame.image)
            seconds.append(time.perf_counter() - start)
            scenes[name].append((frame, found))
    return scenes, seconds


def tracked(frames: Sequence[Sequenced], smoothing_s: float) -> dict[str, Any]:
    """Track the detections of a scene and return the errors.

    Returns:
        ``recall``; ``false_positives``, the boxes that are not a face's; ``switches``, how often a person's track
        changes without a gap that justifies a new one; ``tracks`` and ``persons``; and for the found faces the mean
        ``iou``, ``centre`` (median and 95th percentile of the error, in % of the box's longer side) and ``trembling``
        (root mean square of that error's change from frame to frame, in %).
    """
    tracker = FaceTracker(smoothing_s)
    last: dict[int, tuple[int, float]] = {}
    errors: dict[int, list[tuple[float, float]]] = {}
    ious, faces, wrong, switches = [], 0, 0, 0
    numbers: set[int] = set()
    persons: set[int] = set()
    for frame, detections in frames:
        sightings = [sighting for sighting in tracker.update(frame.time_s, detections) if sighting.detected]
        numbers |= {sighting.track for sighting in sightings}
        persons |= set(frame.boxes)
        faces += len(frame.boxes)
        overlap = overlaps(edges(list(frame.boxes.values())), edges([sighting.box for sighting in sightings]))
        taken = set()
        for row, (place, truth) in enumerate(frame.boxes.items()):
            if not sightings or overlap[row].max() < FOUND:
                continue
            column = int(overlap[row].argmax())
            found = sightings[column]
            taken.add(column)
            ious.append(float(overlap[row, column]))
            x, y = (100 * (a - b) / longer(truth) for a, b in zip(found.box.centre, truth.centre, strict=True))
            errors.setdefault(place, []).append((x, y))
            before, seen_s = last.get(place, (found.track, 0.0))
            switches += bool(before != found.track) and frame.time_s - seen_s <= HOLD_S
            last[place] = found.track, frame.time_s
        left = [sighting.box for column, sighting in enumerate(sightings) if column not in taken]
        near = overlaps(edges(left), edges(list(frame.partial)))
        wrong += sum(bool(not row.size or row.max() < 0.1) for row in near)
    distances = [float(np.hypot(*error)) for of_one in errors.values() for error in of_one]
    changes = np.concatenate([np.diff(of_one, axis=0) for of_one in errors.values()]) if errors else np.zeros((0, 2))
    return {
        "faces": faces,
        "recall": len(ious) / faces if faces else None,
        "false_positives": wrong,
        "switches": switches,
        "tracks": len(numbers),
        "persons": len(persons),
        "iou": float(np.mean(ious)) if ious else None,
        "centre": [float(np.quantile(distances, share)) for share in (0.5, 0.95)] if distances else None,
        "trembling": float(np.sqrt((changes**2).sum(axis=1).mean())) if len(changes) else None,
    }


def recall_of_size(persons: Sequence[Person], detector: FaceDetector, height: int, *, quick: bool) -> float:
    """Return the share of faces of one height in pixels that is found in images of 1920 × 1080 pixels."""
    ground = clutter(np.random.default_rng(1)).resize((1920, 1080), PillowImage.Resampling.BILINEAR)
    faces = [cutout for person in persons for cutout in person[:6]]
    found = 0
    images = 1 if quick else 4
    for image in range(images):
        picture = ground.copy()
        boxes = [
            put(picture, face_of(faces, image * 18 + k), 160 + 320 * (k % 6), 180 + 360 * (k // 6), height)
            for k in range(18)
        ]
        seen = [detection.box for detection in detector.detect(np.asarray(picture))]
        found += int((overlaps(edges(boxes), edges(seen)).max(axis=1, initial=0.0) >= FOUND).sum())
    return found / (18 * images)


def face_of(faces: Sequence[Cutout], number: int) -> Cutout:
    return faces[number * 7 % len(faces)]


def frames_of_video(video: Path, detector: FaceDetector) -> list[Boxed]:
    """Return a video's frames with the smoothed box of its first face, as ``predict`` would see them."""
    tracker = FaceTracker()
    found = []
    for frame in timed_frames(video, INTERVAL_S):
        sightings = tracker.update(frame.time_s, detector.detect(frame.image))
        if sightings:
            found.append((frame.image, sightings[0].box))
    return found


def drawn_sequences(persons: Sequence[Person]) -> list[list[Boxed]]:
    """Return drawn faces at their known places."""
    frames = list(frames_of(SCENES["two, far from each other"], persons, INTERVAL_S))
    return [[(frame.image, frame.boxes[place]) for frame in frames] for place in (0, 1)]


def sensitivity(
    predictor: Predictor, sequences: Sequence[Sequence[Boxed]], image_size: int, *, quick: bool
) -> dict[str, Any]:
    """Measure how far the logits move with the margin, and with boxes that jump from frame to frame."""
    sequences = [sequence[: MAX_FRAMES + WINDOW_STEP] if quick else sequence for sequence in sequences]

    def logits(changed: Callable[[Box], Box], margin: float) -> Float32:
        return np.concatenate([
            answers(predictor, [face_crop(image, changed(box), image_size, margin=margin) for image, box in sequence])
            for sequence in sequences
        ])  # fmt: skip

    usual = logits(lambda box: box, DEFAULT_MARGIN)
    ranked = np.sort(usual, axis=1)
    rows: dict[str, Any] = {
        "windows": len(usual),
        "default_margin": DEFAULT_MARGIN,
        "lead": float(np.median(ranked[:, -1] - ranked[:, -2])),
        "margin": [],
        "jitter": [],
    }
    settings = [("margin", margin, 0.0) for margin in MARGINS] + [("jitter", DEFAULT_MARGIN, j) for j in JITTERS]
    for kind, margin, jitter in progress(settings, "answers", len(settings)):
        rng = np.random.default_rng(0)
        moved = logits(lambda box, rng=rng, jitter=jitter: jittered(box, jitter, rng), margin)  # type: ignore[misc]
        change = np.abs(moved - usual)
        rows[kind].append({
            "value": margin if kind == "margin" else jitter,
            "largest": float(change.max()),
            "median": float(np.median(change)),
            "flips": int((moved.argmax(axis=1) != usual.argmax(axis=1)).sum()),
        })  # fmt: skip
    return rows


def jittered(box: Box, jitter: float, rng: np.random.Generator) -> Box:
    """Return the box with its centre and sides changed at random by up to a share of its longer side."""
    x, y, across, down = rng.uniform(-jitter, jitter, 4) * longer(box)
    return Box(box.left + x - across / 2, box.top + y - down / 2, box.right + x + across / 2, box.bottom + y + down / 2)


def answers(predictor: Predictor, crops: Sequence[Image]) -> Float32:
    """Return the logits [N, C] of all windows of 16 crops; if there are fewer, the last crop is repeated."""
    crops = [*crops, *[crops[-1]] * (MAX_FRAMES - len(crops))]
    features = np.concatenate(
        [predictor.encode(np.stack(crops[k : k + 16])[None])[0] for k in range(0, len(crops), 16)]
    )
    windows = [features[k : k + MAX_FRAMES] for k in range(0, len(crops) - MAX_FRAMES + 1, WINDOW_STEP)]
    return predictor.classify(np.ascontiguousarray(np.stack(windows))).logits


def edges(boxes: Sequence[Box]) -> Any:
    return np.array([(box.left, box.top, box.right, box.bottom) for box in boxes]).reshape(-1, 4)


def longer(box: Box) -> float:
    return max(box.width, box.height)


def print_tracking(tracking: Mapping[str, Mapping[str, Any]]) -> None:
    def both(found: Mapping[str, Any], show: Callable[[Any], str]) -> str:
        values = [found[way] for way in ("detected", "smoothed")]
        return " → ".join(show(value) for value in values) if values[0]["iou"] is not None else "–"

    table(
        "tracks, six frames a second; boxes as detected → smoothed, errors in % of the face",
        ("scene", "faces", "recall", "false", "tracks / persons", "switches", "IoU", "centre, 95 %", "trembling"),
        [
            (name, str(found["smoothed"]["faces"]),
             "–" if found["smoothed"]["recall"] is None else f"{found['smoothed']['recall']:.0%}",
             str(found["smoothed"]["false_positives"]),
             f"{found['smoothed']['tracks']} / {found['smoothed']['persons']}", str(found["smoothed"]["switches"]),
             both(found, lambda way: f"{way['iou']:.2f}"), both(found, lambda way: f"{way['centre'][1]:.1f}"),
             both(found, lambda way: f"{way['trembling']:.1f}"))
            for name, found in tracking.items()
        ],
    )  # fmt: skip


def print_sensitivity(crops: Mapping[str, Any]) -> None:
    for kind, label in (("margin", "margin"), ("jitter", "jitter, share of the box")):
        table(
            f"change of the logits in {crops['windows']} windows (the first class leads by {crops['lead']:.2f})",
            (label, "largest", "median", "other answer"),
            [
                (f"{row['value']:g}", f"{row['largest']:.3f}", f"{row['median']:.3f}", str(row["flips"]))
                for row in crops[kind]
            ],
        )


def draw(result: Mapping[str, Any], *, quick: bool) -> Any:
    """Draw errors by scene, recall by size, and the change of the logits."""
    picture, (centre, recall, margin, jitter) = figure("Faces", 4, quick=quick)
    picture.suptitle(
        f"Faces ({'drawn' if result['faces'] == 'drawn' else 'cut out of real videos'}; logits: {result['answers']})"
    )
    scenes = {name: found for name, found in result["tracking"].items() if found["smoothed"]["trembling"] is not None}
    for place, way in enumerate(("detected", "smoothed")):
        centre.plot(
            [found[way]["trembling"] for found in scenes.values()], list(scenes),
            MARKERS[place], color=COLOURS[place], markersize=5, label=way,
        )  # fmt: skip
    centre.set_xlabel("trembling of the centre, % of the face")
    centre.set_xlim(left=0)
    centre.tick_params(axis="y", labelsize=7)
    centre.invert_yaxis()
    centre.legend(frameon=False, fontsize=8)
    heights = [int(height) for height in result["recall_of_height"]]
    recall.plot(heights, list(result["recall_of_height"].values()), marker=MARKERS[0], color=COLOURS[0])
    recall.set_ylim(0, 1.05)
    recall.set_xlabel("height of the face in 1920 × 1080 pixels")
    recall.set_ylabel("recall")
    for axes, kind, label in ((margin, "margin", "margin"), (jitter, "jitter", "jitter of the box, % of its side")):
        rows = result["sensitivity"][kind]
        x = [row["value"] * (100 if kind == "jitter" else 1) for row in rows]
        for place, which in enumerate(("largest", "median")):
            axes.plot(x, [row[which] for row in rows], marker=MARKERS[place], color=COLOURS[place], label=which)
        axes.axhline(
            result["sensitivity"]["lead"], color="0.4", linestyle="--", linewidth=1, label="lead of the answer"
        )
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("change of a logit")
        axes.legend(frameon=False, fontsize=8)
    return picture


if __name__ == "__main__":
    main()
