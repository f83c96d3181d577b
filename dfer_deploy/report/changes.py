"""The part of the page about clips whose answer changed: frames, and both probability vectors."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.errors import DferDeployError
from dfer_deploy.verification.verification_result import Comparison, Flip, VerificationResult

MAX_PICTURED = 24
"""Largest number of changed clips with frames and probabilities, because the pictures make up most of the page's
size."""

_FRAMES = 4
"""Number of frames of a clip."""

_FRAME_PIXELS = 96
"""Side of a frame in pixels."""

_JPEG_QUALITY = 72
"""JPEG quality of a frame, which keeps it at a few kilobytes."""

_MAX_NAMED = 200
"""Largest number of further changed clips that are named without pictures, so that the page stays readable."""

_MAX_ROWS = 12
"""Largest number of classes of a clip. Those with the largest probabilities in either answer are shown."""

_ALIKE = 0.005
"""Candidates whose probabilities differ by less than this are shown as one."""


def changed_answers(result: VerificationResult, clips: Mapping[str, Path]) -> dict[str, Any]:
    """Return the template's values. Clips on which the reference was surest come first.

    Args:
        result: the result of the verification.
        clips: paths of the clips on this machine, by name. A clip that is missing or unreadable is shown without
            frames.
    """
    changed: dict[str, list[tuple[Comparison, Flip]]] = {}
    for candidate in result.comparisons:
        for flip in candidate.flips:
            changed.setdefault(flip.clip, []).append((candidate, flip))
    surest = sorted(changed.values(), key=lambda answers: -answers[0][1].margin)
    shown, named = surest[:MAX_PICTURED], surest[MAX_PICTURED : MAX_PICTURED + _MAX_NAMED]
    clips_changed = "1 clip" if len(surest) == 1 else f"{len(surest):,} clips"
    which = f"The {len(shown)}" if len(shown) < len(surest) else "Those"
    order = f" {which} on which {result.truth.name} was surest come first." if len(surest) > 1 else ""
    shown_clips = [_clip(result, answers, clips.get(answers[0][1].clip)) for answers in shown]
    return {
        "flips": shown_clips,
        "flips_sentence": f"{clips_changed} of {result.clips:,}.{order}",
        "pictured": any(clip["frames"] for clip in shown_clips),
        "more_flips": [_named(answers[0][1]) for answers in named],
        "unnamed_flips": max(0, len(surest) - MAX_PICTURED - _MAX_NAMED),
    }


def _clip(result: VerificationResult, answers: list[tuple[Comparison, Flip]], path: Path | None) -> dict[str, Any]:
    alike: list[tuple[list[str], Flip]] = []
    for candidate, flip in answers:
        vector = np.array(flip.answered_probabilities)
        for names, other in alike:
            if np.abs(vector - other.answered_probabilities).max() < _ALIKE and flip.answered == other.answered:
                names.append(candidate.name)
                break
        else:
            alike.append(([candidate.name], flip))
    first = answers[0][1]
    return _named(first) | {
        "frames": [] if path is None else _pictures(path),
        "answers": [
            {"names": ", ".join(names), "answered": flip.answered, "rows": _probabilities(result, flip)}
            for names, flip in alike
        ],
    }


def _named(flip: Flip) -> dict[str, Any]:
    return vars(flip) | {"margin": f"{flip.margin:.2g}"}


def _probabilities(result: VerificationResult, flip: Flip) -> list[dict[str, Any]]:
    pairs = list(zip(flip.probabilities, flip.answered_probabilities, strict=True))
    largest = sorted(range(len(pairs)), key=lambda place: -max(pairs[place]))[:_MAX_ROWS]
    return [
        {
            "name": result.class_names[place],
            "named": result.class_names[place] in (flip.expected, flip.answered),
            "width": f"{100 * pairs[place][0]:.1f}",
            "answered_width": f"{100 * pairs[place][1]:.1f}",
            "before": f"{pairs[place][0]:.3f}",
            "after": f"{pairs[place][1]:.3f}",
        }
        for place in sorted(largest)
    ]


def _pictures(path: Path) -> list[dict[str, Any]]:
    """Return frames spread over the clip as the model sees them, as small JPEG pictures embedded in the page."""
    try:
        clip = clip_from_path(path, _FRAME_PIXELS)
    except DferDeployError:
        return []
    pictures = []
    for place in np.linspace(0, len(clip) - 1, _FRAMES).round().astype(int):
        buffer = io.BytesIO()
        Image.fromarray(clip[place]).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
        data = base64.b64encode(buffer.getvalue()).decode()
        pictures.append({"data": f"data:image/jpeg;base64,{data}", "number": int(place) + 1, "count": len(clip)})
    return pictures
