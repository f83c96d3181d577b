"""Draw one cartoon face from an identity, a pose of the head, and action units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dfer_deploy.train.expressions import ActionUnits
from dfer_deploy.train.pen import CIRCLE, Array, Colour, Pen, Pose, arc, closed, colour_from, ellipse, mixed, shaded

SUPERSAMPLING = 3
"""Faces are drawn this many times larger and averaged down, because ImageDraw does not smooth edges."""

_SKINS = ((255, 224, 196), (241, 194, 160), (224, 172, 130), (198, 134, 92), (150, 98, 66), (98, 64, 46))
_HAIR = ((28, 22, 20), (60, 38, 24), (110, 70, 36), (176, 122, 60), (214, 180, 110), (150, 60, 30), (150, 150, 155))
_IRISES = ((60, 40, 26), (96, 64, 34), (60, 100, 140), (70, 110, 70), (90, 100, 110))
_TEETH: Colour = (242, 238, 228)
_CAVITY: Colour = (70, 20, 24)
_ACROSS = np.linspace(-1.0, 1.0, 17)


@dataclass(frozen=True)
class Identity:
    """What is the same in every clip of one person. Lengths are in half face widths; y points down."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    height: float
    jaw: float
    eye_distance: float
    eye_width: float
    eye_opening: float
    brow_height: float
    brow_tilt: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    mouth_curve: float
    lip_thickness: float
    hair_length: float
    hair_line: float
    fringe: float
    beard: float
    glasses: bool


def random_identity(rng: np.random.Generator) -> Identity:
    """Draw a person at random. The face at rest already differs in brows, eyes and mouth corners."""
    skin = _between(_SKINS, rng)
    hair = _between(_HAIR, rng)
    return Identity(
        skin=skin,
        hair=hair,
        iris=_between(_IRISES, rng),
        clothes=colour_from(rng.uniform(30, 220, 3)),
        height=rng.uniform(1.2, 1.4),
        jaw=rng.uniform(0.55, 0.85),
        eye_distance=rng.uniform(0.37, 0.46),
        eye_width=rng.uniform(0.18, 0.23),
        eye_opening=rng.uniform(0.085, 0.125),
        brow_height=rng.uniform(0.24, 0.32),
        brow_tilt=rng.normal(0.0, 0.02),
        brow_thickness=rng.uniform(0.035, 0.08),
        nose_length=rng.uniform(0.34, 0.46),
        nose_width=rng.uniform(0.12, 0.19),
        mouth_width=rng.uniform(0.3, 0.38),
        mouth_height=rng.uniform(0.6, 0.7),
        mouth_curve=rng.normal(0.0, 0.02),
        lip_thickness=rng.uniform(0.045, 0.085),
        hair_length=float(rng.choice([0.0, 0.3, 1.0])) * rng.uniform(0.8, 1.1),
        hair_line=rng.uniform(0.62, 0.8),
        fringe=rng.uniform(-0.25, 0.25),
        beard=float(rng.random() < 0.2) * rng.uniform(0.3, 0.8),
        glasses=bool(rng.random() < 0.25),
    )


def draw_face(backdrop: Image.Image, identity: Identity, pose: Pose, units: ActionUnits) -> Image.Image:
    """Draw a face on a copy of the backdrop.

    Args:
        backdrop: RGB and square, SUPERSAMPLING times larger than the result.
        identity: the person.
        pose: the pose of the head.
        units: the movements of the face.

    Returns:
        An RGB image of the backdrop's side length / SUPERSAMPLING.
    """
    picture = backdrop.copy()
    pen = Pen(picture, pose)
    _draw_shoulders_and_back_hair(pen, identity)
    _draw_head(pen, identity, units)
    for side in (-1.0, 1.0):
        _draw_eye(pen, identity, units, side)
        _draw_brow(pen, identity, units, side)
    _draw_nose(pen, identity, units)
    _draw_folds(pen, identity, units)
    _draw_mouth(pen, identity, units)
    _draw_front_hair(pen, identity)
    if identity.glasses:
        _draw_glasses(pen, identity)
    return picture.reduce(SUPERSAMPLING)


def _draw_shoulders_and_back_hair(pen: Pen, who: Identity) -> None:
    if who.hair_length > 0:
        locks = ellipse(0.0, -0.1, 1.15, who.height + 0.1)
        low = locks[:, 1] > 0
        locks[low, 1] *= 0.4 + 0.8 * who.hair_length
        pen.fill(locks, who.hair, bulge=-0.3)
    body = ellipse(0.0, who.height + 1.35, 2.0, 0.95)
    pen.fill(body, who.clothes, bulge=0.0)
    neck = np.array(
        [(-0.45, 0.6), (0.45, 0.6), (0.5, who.height + 0.5), (0.0, who.height + 0.75), (-0.5, who.height + 0.5)]
    )
    pen.fill(neck, shaded(who.skin, 0.8), bulge=0.0)


def _draw_head(pen: Pen, who: Identity, units: ActionUnits) -> None:
    for side in (-1.0, 1.0):
        pen.fill(ellipse(side * 0.98, 0.05, 0.15, 0.26), shaded(who.skin, 0.88), bulge=0.0)
    outline = _outline(who, units)
    pen.fill(outline, who.skin, bulge=0.0)
    if who.beard > 0:
        jaw = outline[outline[:, 1] > 0.3]
        jaw = jaw[np.argsort(-jaw[:, 0])]
        upper = np.stack([jaw[::-1, 0] * 0.75, 0.42 + 0.3 * (jaw[::-1, 0] ** 2)], axis=1)
        pen.fill(np.concatenate([jaw, upper]), mixed(who.skin, who.hair, who.beard), bulge=0.2)
    if units.cheek_raise > 0.1 or units.corner_pull > 0.1:
        lift = 0.1 * units.corner_pull
        blush = mixed(who.skin, (225, 90, 80), 0.25 * min(1.0, units.corner_pull))
        for side in (-1.0, 1.0):
            pen.fill(ellipse(side * 0.58, 0.3 - lift, 0.2, 0.13), blush)


def _outline(who: Identity, units: ActionUnits) -> Array:
    x, y = np.cos(CIRCLE), np.sin(CIRCLE)
    low = np.maximum(y, 0.0)
    x = x * (1.0 - (1.0 - who.jaw) * low**2 * 0.8)
    y = y * who.height * np.where(y > 0, 0.92 + 0.13 * units.jaw_drop, 1.0)
    return np.stack([x, y], axis=1)


def _draw_eye(pen: Pen, who: Identity, units: ActionUnits, side: float) -> None:
    centre_x, centre_y = side * who.eye_distance, -0.16
    open_share = max(0.0, 1.0 - units.blink)
    narrowed = 0.45 * units.lid_tighten + 0.25 * units.cheek_raise + 0.3 * units.nose_wrinkle
    upper = who.eye_opening * (1.0 + 0.9 * units.upper_lid_raise - narrowed) * open_share
    lower = who.eye_opening * (0.75 - 0.5 * units.cheek_raise - 0.4 * units.lid_tighten) * open_share
    upper, lower = max(upper, 0.0), max(lower, 0.0 if open_share else -0.02)
    # Sadness and fear pull the inner end of the lid up with the brow.
    slant = -0.07 * (units.inner_brow_raise - units.outer_brow_raise) + 0.04 * units.brow_lower
    bow = np.sqrt(1.0 - _ACROSS**2)
    x = centre_x + side * who.eye_width * _ACROSS
    tilt = -slant * _ACROSS * 0.6
    top = centre_y + tilt - upper * bow
    bottom = centre_y + tilt + lower * bow
    if upper + lower > 0.02:
        pen.fill(closed(x, top, x, bottom), (250, 248, 244))
        for radius, colour in ((0.115, who.iris), (0.055, (12, 10, 10))):
            ring = ellipse(centre_x, centre_y, radius, radius)
            order = np.argsort(x)
            ring[:, 1] = np.clip(
                ring[:, 1], np.interp(ring[:, 0], x[order], top[order]), np.interp(ring[:, 0], x[order], bottom[order])
            )
            pen.fill(ring, colour)
    pen.line(np.stack([x, top], axis=1), shaded(who.skin, 0.3), 0.04)
    pen.line(np.stack([x, bottom], axis=1), shaded(who.skin, 0.65), 0.02)
    if units.cheek_raise > 0.25 or units.lid_tighten > 0.25:
        fold = np.stack([x, bottom + 0.05 + 0.03 * bow], axis=1)
        pen.line(fold, shaded(who.skin, 0.82), 0.025)


def _draw_brow(pen: Pen, who: Identity, units: ActionUnits, side: float) -> None:
    base = -0.16 - who.brow_height
    lowered = 0.14 * units.brow_lower + 0.07 * units.nose_wrinkle
    inner = base - 0.22 * units.inner_brow_raise + 1.3 * lowered + who.brow_tilt
    middle = base - 0.07 - 0.11 * units.inner_brow_raise - 0.15 * units.outer_brow_raise + 0.9 * lowered
    saddened = max(0.0, units.inner_brow_raise - units.outer_brow_raise)
    outer = base + 0.02 - 0.19 * units.outer_brow_raise + 0.09 * saddened + 0.25 * lowered - who.brow_tilt
    start = who.eye_distance - who.eye_width - 0.03 - 0.06 * units.brow_lower
    end = who.eye_distance + who.eye_width + 0.08
    share = (_ACROSS + 1.0) / 2.0
    x = side * (start + (end - start) * share)
    y = inner * (1 - share) ** 2 + (2 * middle - 0.5 * (inner + outer)) * 2 * share * (1 - share) + outer * share**2
    half = who.brow_thickness * (1.0 - 0.7 * share**2)
    pen.fill(closed(x, y - half, x, y + half), mixed(who.hair, (20, 16, 14), 0.4))


def _draw_nose(pen: Pen, who: Identity, units: ActionUnits) -> None:
    tip = -0.12 + who.nose_length - 0.04 * units.nose_wrinkle
    wing = who.nose_width * (1.0 + 0.15 * units.nose_wrinkle)
    dark = shaded(who.skin, 0.72)
    pen.fill(ellipse(0.0, tip, wing, 0.1), shaded(who.skin, 0.92), bulge=1.1)
    pen.line(np.array([(-0.09, -0.14), (-0.06, tip - 0.12), (-wing, tip + 0.02)]), dark, 0.025, bulge=1.1)
    for side in (-1.0, 1.0):
        pen.fill(ellipse(side * wing * 0.5, tip + 0.05, 0.04, 0.025), shaded(who.skin, 0.5), bulge=1.1)
        pen.line(arc(side * wing * 0.8, tip, 0.06, 0.08, -1.2 if side > 0 else 1.9, 2.4), dark, 0.022, bulge=1.1)


def _draw_folds(pen: Pen, who: Identity, units: ActionUnits) -> None:
    def fold(points: list[tuple[float, float]], strength: float, width: float = 0.025) -> None:
        if strength > 0.15:
            pen.line(np.array(points), shaded(who.skin, 1.0 - 0.4 * min(1.0, strength)), width)

    raised = min(units.inner_brow_raise, units.outer_brow_raise)
    for height in (-0.76, -0.86):
        fold([(-0.42, height + 0.03), (0.0, height), (0.42, height + 0.03)], raised)
    for side in (-1.0, 1.0):
        fold([(side * 0.06, -0.5), (side * 0.05, -0.3)], 1.3 * units.brow_lower)
        for step in (0.0, 0.08):
            fold([(side * 0.02, -0.2 + step), (side * 0.13, -0.1 + step)], 1.2 * units.nose_wrinkle)
        fold(
            [
                (side * (who.nose_width + 0.06), 0.16),
                (side * (who.nose_width + 0.2), 0.34),
                (side * (who.mouth_width + 0.14), 0.54),
            ],
            max(units.nose_wrinkle, units.corner_pull, 0.8 * units.upper_lip_raise),
        )
    fold([(-0.14, 1.0), (0.0, 0.96), (0.14, 1.0)], units.chin_raise, width=0.03)


def _draw_mouth(pen: Pen, who: Identity, units: ActionUnits) -> None:
    stretch = 0.3 * units.corner_pull + 0.36 * units.lip_stretch - 0.05 * units.lip_press
    half_width = who.mouth_width * (1.0 + stretch - 0.3 * units.jaw_drop * (1.0 - min(1.0, max(0.0, stretch * 3))))
    gap = max(0.0, 0.17 * units.lips_part + 0.5 * units.jaw_drop + 0.09 * units.upper_lip_raise)
    corner = -0.23 * units.corner_pull + 0.21 * units.corner_depress + 0.03 * units.lip_stretch + who.mouth_curve
    middle = -0.11 * units.chin_raise - 0.02 * units.upper_lip_raise
    thickness = who.lip_thickness * (1.0 - 0.75 * min(1.0, max(0.0, units.lip_press)))
    edge = _ACROSS**2
    # A stretched mouth or bared teeth open as a box, a dropped jaw as an ellipse.
    power = 0.25 if units.lip_stretch + units.upper_lip_raise > 0.5 else 0.55
    bow = (1.0 - edge) ** power
    x = half_width * _ACROSS
    line = who.mouth_height + middle * (1.0 - edge) + corner * edge
    inner_top = line - (0.25 * gap + 0.1 * units.upper_lip_raise) * bow
    inner_bottom = line + 0.75 * gap * bow - 0.03 * units.chin_raise * bow
    inner_bottom = np.maximum(inner_bottom, inner_top)
    lip_bow = (1.0 - edge) ** 0.6
    cupid = 1.0 - 0.35 * np.exp(-((_ACROSS / 0.16) ** 2))
    outer_top = inner_top - thickness * lip_bow * cupid
    outer_bottom = inner_bottom + 1.25 * thickness * lip_bow
    lips = mixed(who.skin, (175, 50, 60), 0.5)
    pen.fill(closed(x, outer_top, x, outer_bottom), lips)
    opening = inner_bottom - inner_top
    if opening.max() > 0.03:
        pen.fill(closed(x, inner_top, x, inner_bottom), _CAVITY)
        inside = np.abs(_ACROSS) < 0.9
        shown = np.minimum(0.13, (0.75 if units.jaw_drop < 0.3 else 0.3) * opening)
        pen.fill(closed(x[inside], inner_top[inside], x[inside], (inner_top + shown)[inside]), _TEETH)
        if units.jaw_drop > 0.35:
            tongue = ellipse(0.0, float(inner_bottom[8]) - 0.02, 0.45 * half_width, 0.3 * gap)
            tongue[:, 1] = np.minimum(tongue[:, 1], float(inner_bottom[8]) - 0.01)
            pen.fill(tongue, (190, 80, 84))
    else:
        pen.line(np.stack([x, line - 0.1 * units.upper_lip_raise * bow], axis=1), shaded(lips, 0.5), 0.03)


def _draw_front_hair(pen: Pen, who: Identity) -> None:
    if who.hair_line > 0.78 and who.hair_length == 0:
        return  # bald
    angles = np.linspace(np.pi, 2 * np.pi, 24)
    top = np.stack([1.05 * np.cos(angles), (who.height + 0.08) * np.sin(angles)], axis=1)
    x = np.linspace(1.05, -1.05, 24)
    line = -who.hair_line - 0.15 + 0.55 * np.abs(x) ** 3 + who.fringe * x * (1.05 - np.abs(x))
    pen.fill(np.concatenate([top, np.stack([x, line], axis=1)]), who.hair, bulge=0.25)


def _draw_glasses(pen: Pen, who: Identity) -> None:
    frame = (36, 34, 40)
    for side in (-1.0, 1.0):
        ring = ellipse(side * who.eye_distance, -0.13, who.eye_width + 0.07, 0.2)
        pen.line(np.concatenate([ring, ring[:1]]), frame, 0.035, bulge=1.0)
        outer = side * (who.eye_distance + who.eye_width + 0.07)
        pen.line(np.array([(outer, -0.14), (side * 0.98, -0.1)]), frame, 0.035, bulge=0.5)
    bridge = who.eye_distance - who.eye_width - 0.07
    pen.line(np.array([(-bridge, -0.14), (0.0, -0.17), (bridge, -0.14)]), frame, 0.035, bulge=1.0)


def _between(palette: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    first, second = rng.choice(len(palette), 2)
    return mixed(palette[first], palette[second], 0.35 * rng.random())
