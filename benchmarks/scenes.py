"""Videos with faces at known places: cut out of real videos or drawn, and moved over a cluttered ground."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFilter

from dfer_deploy.clips.faces import Box, FaceDetector, Image
from dfer_deploy.clips.timed import timed_frames

WIDTH, HEIGHT = 640, 360
CUTOUT_MARGIN = 0.35
"""Margin around the box, so that hair and chin are included."""

Place = tuple[float, float, float]
"""Centre x and y, and height of a face, in pixels."""


@dataclass(frozen=True)
class Cutout:
    """A face that can be put anywhere.

    Attributes:
        pixels: RGBA, with the box's centre in the middle.
        height: height of the box, as a share of the cutout's side.
        width: width of the box, as a share of the cutout's side.
    """

    pixels: PillowImage.Image
    height: float
    width: float


Person = Sequence[Cutout]
"""One face over time, six cutouts a second."""


@dataclass(frozen=True)
class Actor:
    """A person in a scene.

    Attributes:
        person: index of the person, modulo the number of persons.
        course: function from a time in seconds to the place of the face.
        start_s: time at which it appears, in seconds.
        end_s: time at which it disappears, in seconds.
        hidden: start and end of the times during which it is covered, in seconds.
    """

    person: int
    course: Callable[[float], Place]
    start_s: float = 0.0
    end_s: float = math.inf
    hidden: tuple[tuple[float, float], ...] = ()

    def is_there(self, time_s: float) -> bool:
        return self.start_s <= time_s < self.end_s and not any(a <= time_s < b for a, b in self.hidden)


@dataclass(frozen=True)
class Scene:
    """A scene with actors. Later actors stand in front of earlier ones."""

    seconds: float
    actors: tuple[Actor, ...]


def still(x: float, y: float, height: float) -> Callable[[float], Place]:
    return lambda _: (x, y, height)


def moving(x: float, y: float, height: float, speed: float) -> Callable[[float], Place]:
    """Return a course to the right; the speed is in heights of the face a second."""
    return lambda time_s: (x + speed * height * time_s, y, height)


SCENES: Mapping[str, Scene] = {
    "still": Scene(4.0, (Actor(0, still(320, 170, 120)),)),
    "two, far from each other": Scene(4.0, (Actor(0, still(160, 170, 120)), Actor(1, still(470, 170, 100)))),
    "late, then gone": Scene(6.0, (Actor(0, still(160, 170, 110)), Actor(1, still(470, 170, 110), 2.0, 4.0))),
    "through the picture, 1 face/s": Scene(6.5, (Actor(0, moving(-60, 170, 110, 1.0)),)),
    "through the picture, 3 faces/s": Scene(2.5, (Actor(1, moving(-60, 170, 110, 3.0)),)),
    "crossing, 1 face/s each": Scene(6.0, (Actor(0, moving(60, 170, 90, 1.0)), Actor(1, moving(580, 175, 90, -1.0)))),
    "crossing, 2 faces/s each": Scene(3.0, (Actor(0, moving(60, 170, 90, 2.0)), Actor(1, moving(580, 175, 90, -2.0)))),
    "hidden for 0.4 s": Scene(4.0, (Actor(0, moving(200, 170, 110, 0.3), hidden=((1.5, 1.9),)),)),
    "hidden for 1.5 s": Scene(
        5.0, (Actor(0, still(320, 170, 110), 0.0, 1.5), Actor(0, still(320, 170, 110), 3.0, 5.0))
    ),
    "coming nearer, 24 to 240 pixels": Scene(4.0, (Actor(0, lambda t: (320, 180, 24 * 10 ** (t / 4))),)),
    "trembling": Scene(
        4.0,
        (Actor(1, lambda t: (320 + 6 * math.sin(17 * t), 170 + 6 * math.cos(23 * t), 110 + 3 * math.sin(11 * t))),),
    ),
    "twelve": Scene(
        3.0,
        tuple(Actor(k, moving(60 + 150 * (k % 4), 70 + 110 * (k // 4), 60, 0.1 * (-1) ** k)) for k in range(12)),
    ),
    "nobody": Scene(4.0, ()),
}


def persons_in(videos: Sequence[Path], detector: FaceDetector, *, count: int) -> list[Person]:
    """Cut out the faces of real videos with one face each, where the detector finds it; as they are and mirrored."""
    persons: list[Person] = []
    for video in videos:
        found = ((frame.image, detector.detect(frame.image)) for frame in timed_frames(video, 1 / 6))
        cutouts = [cut(image, detections[0].box) for image, detections in itertools.islice(found, count) if detections]
        mirrored = [
            Cutout(cutout.pixels.transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT), cutout.height, cutout.width)
            for cutout in cutouts
        ]
        persons += [cutouts, mirrored]
    return persons


def persons_drawn(number: int, *, count: int) -> list[Person]:
    """Draw faces of the synthetic data set; their box reaches from the hairline to the chin."""
    from dfer_deploy.train.drawn_faces import SUPERSAMPLING, draw_face, random_identity
    from dfer_deploy.train.expressions import CLASS_NAMES, movement
    from dfer_deploy.train.pen import Pose

    side, half = 160, 0.25
    persons: list[Person] = []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        identity = random_identity(rng)
        ground = PillowImage.new("RGB", (side * SUPERSAMPLING,) * 2, (128, 120, 112))
        middle = (0.95 * identity.height - identity.hair_line) / 2
        pose = Pose(half_width=half, y=0.5 - middle * half)
        height = (0.95 * identity.height + identity.hair_line) * half
        cutouts = []
        for units in movement(CLASS_NAMES[seed % len(CLASS_NAMES)], count, rng):
            picture = draw_face(ground, identity, pose, units).convert("RGBA")
            picture.putalpha(oval(side))
            cutouts.append(Cutout(picture, height, 2 * half))
        persons.append(cutouts)
    return persons


def cut(image: Image, box: Box) -> Cutout:
    """Cut out the surroundings of a box, fading out in an oval."""
    side = round(max(box.width, box.height) * (1 + 2 * CUTOUT_MARGIN))
    left, top = (round(centre - side / 2) for centre in box.centre)
    picture = PillowImage.fromarray(image).crop((left, top, left + side, top + side)).convert("RGBA")
    picture.putalpha(oval(side))
    return Cutout(picture, box.height / side, box.width / side)


def oval(side: int) -> PillowImage.Image:
    """Return a mask that is opaque inside an oval and transparent at its edge."""
    mask = PillowImage.new("L", (side, side), 0)
    edge = side * 0.06
    ImageDraw.Draw(mask).ellipse((edge * 1.5, edge, side - edge * 1.5, side - edge), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(edge / 2))


@dataclass(frozen=True)
class SceneFrame:
    """One frame of a scene.

    Attributes:
        time_s: seconds since the scene's start.
        image: uint8 [360, 640, 3].
        boxes: boxes of the visible faces, by the actor's index in the scene.
        partial: actors whose faces are half out of the image or half covered. Finding them and missing them both count
            as right.
    """

    time_s: float
    image: Image
    boxes: Mapping[int, Box]
    partial: Sequence[Box]


def frames_of(scene: Scene, persons: Sequence[Person], interval_s: float) -> Iterator[SceneFrame]:
    """Yield the frames of a scene, always the same ones."""
    ground = clutter(np.random.default_rng(0))
    for step in range(round(scene.seconds / interval_s)):
        time_s = step * interval_s
        # The camera is never completely still.
        shift = (round(4 + 4 * math.sin(time_s)), round(4 + 4 * math.cos(0.7 * time_s)))
        picture = ground.crop((*shift, shift[0] + WIDTH, shift[1] + HEIGHT))
        boxes: dict[int, Box] = {}
        for place, actor in enumerate(scene.actors):
            if actor.is_there(time_s):
                cutouts = persons[actor.person % len(persons)]
                boxes[place] = put(picture, cutouts[round(time_s * 6) % len(cutouts)], *actor.course(time_s))
        whole = Box(0, 0, WIDTH, HEIGHT)
        partial = {
            place
            for place, box in boxes.items()
            if covered(box, whole) < 0.5 or any(covered(box, boxes[front]) > 0.5 for front in boxes if front > place)
        }
        yield SceneFrame(
            time_s,
            np.asarray(picture),
            {place: box for place, box in boxes.items() if place not in partial},
            [boxes[place] for place in sorted(partial)],
        )


def put(picture: PillowImage.Image, cutout: Cutout, x: float, y: float, height: float) -> Box:
    """Put a face so that its box has this centre and height, rounded to pixels; return the box."""
    side = max(1, round(height / cutout.height))
    left, top = round(x - side / 2), round(y - side / 2)
    pixels = cutout.pixels.resize((side, side), PillowImage.Resampling.BILINEAR, reducing_gap=2.0)
    picture.paste(pixels, (left, top), pixels)
    x, y = left + side / 2, top + side / 2
    half_width, half_height = cutout.width * side / 2, cutout.height * side / 2
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def covered(box: Box, front: Box) -> float:
    """Return the share of a box that another box covers, in [0, 1]."""
    width = min(box.right, front.right) - max(box.left, front.left)
    height = min(box.bottom, front.bottom) - max(box.top, front.top)
    return max(0.0, width) * max(0.0, height) / (box.width * box.height)


def clutter(rng: np.random.Generator) -> PillowImage.Image:
    """Draw a background with some shapes, eight pixels larger than the frames."""
    size = (WIDTH + 8, HEIGHT + 8)
    corners = rng.integers(40, 216, (4, 7, 3), dtype=np.uint8)
    picture = PillowImage.fromarray(corners).resize(size, PillowImage.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        across, down = rng.integers(8, 90, 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw((int(x), int(y), int(x + across), int(y + down)), fill=colour)
    noise = rng.normal(0, 6, (size[1], size[0], 3))
    softened = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)))
    return PillowImage.fromarray(np.clip(softened + noise, 0, 255).astype(np.uint8))
