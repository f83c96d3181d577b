"""Tracks of faces whose places are made up: no detector, only geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from dfer_deploy.clips.faces import Box, Detection
from dfer_deploy.clips.tracks import HOLD_S, MAX_TRACKS, SMOOTHING_S, START_SCORE, FaceTracker, Sighting

STEP_S = 1 / 6
SIDE = 100.0

Course = Callable[[float], tuple[float, float] | None]
"""The centre of a face at a time, or None where it cannot be seen."""


def face(x: float, y: float = 200.0, *, side: float = SIDE, score: float = 0.9) -> Detection:
    return Detection(Box(x - 0.4 * side, y - side / 2, x + 0.4 * side, y + side / 2), score)


def sightings_of(
    *courses: Course, seconds: float, step_s: float = STEP_S, noise: float = 0.0, tracker: FaceTracker | None = None
) -> list[tuple[float, list[Sighting]]]:
    """What a tracker makes of some faces; their order changes from frame to frame."""
    rng = np.random.default_rng(0)
    tracker = tracker or FaceTracker()
    seen = []
    for step in range(round(seconds / step_s)):
        places = [place for course in courses if (place := course(step * step_s))]
        found = [face(x + rng.normal(0, noise), y + rng.normal(0, noise)) for x, y in places]
        seen.append((step * step_s, tracker.update(step * step_s, found[:: (-1) ** step])))
    return seen


def centres(seen: Sequence[tuple[float, list[Sighting]]], track: int = 1) -> np.ndarray:
    return np.array([sighting.box.centre for _, found in seen for sighting in found if sighting.track == track])


def still(x: float) -> Course:
    return lambda _: (x, 200.0)


def test_two_people_are_two_tracks_in_the_order_of_appearance() -> None:
    seen = sightings_of(still(100), lambda t: (400, 200) if t > 0.9 else None, seconds=3)
    assert [[sighting.track for sighting in found] for _, found in seen] == [[1]] * 6 + [[1, 2]] * 12
    assert centres(seen, 1)[:, 0] == pytest.approx(100)
    assert centres(seen, 2)[:, 0] == pytest.approx(400)
    assert all(sighting.detected and sighting.score == 0.9 for _, found in seen for sighting in found)


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("step_s", [STEP_S, 1 / 25])
@pytest.mark.parametrize("covered", [0.0, 0.8], ids=["both are found", "the one behind is not found"])
def test_people_who_cross_keep_their_tracks(speed: float, step_s: float, covered: float) -> None:
    meeting_s = 5 / speed / 2

    def left(t: float) -> tuple[float, float]:
        return 50 + speed * SIDE * t, 200

    def right(t: float) -> tuple[float, float] | None:
        hidden = abs(t - meeting_s) < min(covered * 0.4 / speed, HOLD_S / 2 - STEP_S)
        return None if hidden else (550 - speed * SIDE * t, 205)

    seen = sightings_of(left, right, seconds=5 / speed, step_s=step_s, noise=1.5)
    assert {sighting.track for _, found in seen for sighting in found} == {1, 2}
    first, last = seen[0][1], seen[-1][1]
    assert [sighting.box.centre[0] < 300 for sighting in first] == [True, False]
    assert [sighting.box.centre[0] < 300 for sighting in last] == [False, True]


def test_a_face_that_comes_back_soon_is_the_same_and_moves_on_meanwhile() -> None:
    def course(t: float) -> tuple[float, float] | None:
        return None if 1.6 < t < 1.6 + HOLD_S - 2 * STEP_S else (100 + 60 * t, 200)

    seen = sightings_of(course, seconds=4)
    assert all([sighting.track for sighting in found] == [1] for _, found in seen)
    held = [time_s for time_s, found in seen if not found[0].detected]
    assert held == [time_s for time_s, _ in seen if course(time_s) is None]
    # It takes a second or so until the velocity is known.
    for time_s, found in seen[8:]:
        assert found[0].box.centre[0] == pytest.approx(100 + 60 * time_s, abs=3)


def test_a_face_that_stays_away_ends_its_track_and_comes_back_as_another() -> None:
    seen = sightings_of(lambda t: None if 1 < t < 3 else (100, 200), seconds=4)
    by_time = {round(time_s, 3): [sighting.track for sighting in found] for time_s, found in seen}
    assert by_time[round(7 * STEP_S, 3)] == [1], "held"
    assert by_time[round(12 * STEP_S, 3)] == [], "the track has ended"
    assert by_time[round(18 * STEP_S, 3)] == [2]


def test_a_still_face_is_held_for_the_stated_time_only() -> None:
    tracker = FaceTracker()
    tracker.update(0.0, [face(100)])
    (held,) = tracker.update(HOLD_S, [])
    assert not held.detected
    assert held.box.centre == pytest.approx((100, 200))
    assert tracker.update(HOLD_S + 0.001, []) == []


@pytest.mark.parametrize("step_s", [STEP_S, 1 / 25])
def test_smoothing_steadies_the_box_and_does_not_lag(step_s: float) -> None:
    """A tracker that does not smooth fails the first, one that only averages fails the second."""
    still_face = {"seconds": 40, "step_s": step_s, "noise": 3.0}
    as_detected = centres(sightings_of(still(200), **still_face, tracker=FaceTracker(0.0)))
    smoothed = centres(sightings_of(still(200), **still_face))
    assert (smoothed.std(axis=0) < 0.9 * as_detected.std(axis=0)).all()
    assert (np.diff(smoothed, axis=0).std(axis=0) < 0.8 * np.diff(as_detected, axis=0).std(axis=0)).all()
    moving = sightings_of(lambda t: (100 + 150 * t, 200), seconds=4, step_s=step_s)
    for time_s, found in moving[len(moving) // 2 :]:
        assert found[0].box.centre[0] == pytest.approx(100 + 150 * time_s, abs=0.5)


def test_the_centre_is_on_the_line_that_fits_the_past_best_where_old_places_count_less() -> None:
    """What the filter is another form of: a least-squares fit with fading memory (Brookner, chapter 1)."""
    places = 300 + np.cumsum(np.random.default_rng(0).normal(0, 4, 100))
    tracker = FaceTracker()
    for step, x in enumerate(places):
        (found,) = tracker.update(step * STEP_S, [face(x)])
    (held,) = tracker.update((len(places) + 2) * STEP_S, [])
    steps_ago = np.arange(len(places))[::-1]
    memory = math.exp(-STEP_S / SMOOTHING_S)
    slope, now = np.polyfit(-steps_ago, places, 1, w=memory ** (steps_ago / 2))
    assert abs(slope) > 0.1
    assert found.box.centre[0] == pytest.approx(now)
    assert held.box.centre[0] == pytest.approx(now + 3 * slope)


def test_the_smoothing_of_the_size_has_the_stated_time_at_every_frame_rate() -> None:
    sides = []
    for steps in (3, 10, 30):
        tracker = FaceTracker()
        for step in range(steps + 1):
            # After its first frame the face is twice as large.
            detection = face(300, side=SIDE if step == 0 else 2 * SIDE)
            (sighting,) = tracker.update(step * 0.3 / steps, [detection])
        sides.append(sighting.box.height)
    # The size follows twice as fast as the centre's filter remembers: exp(-2 · 0.3 / 0.2) of the change is left.
    assert sides == pytest.approx([SIDE * 2 ** (1 - math.exp(-2 * 0.3 / SMOOTHING_S))] * 3)


def test_without_smoothing_boxes_are_as_detected() -> None:
    tracker = FaceTracker(0.0)
    for step, x in enumerate((100.0, 110.0, 95.0)):
        (sighting,) = tracker.update(step * STEP_S, [face(x)])
        assert sighting.box.centre[0] == pytest.approx(x)


def test_weak_detections_go_on_with_tracks_and_begin_none() -> None:
    tracker = FaceTracker()
    assert tracker.update(0.0, [face(100, score=START_SCORE - 0.01)]) == []
    tracker.update(0.1, [face(100, score=START_SCORE)])
    (sighting,) = tracker.update(0.2, [face(101, score=0.3)])
    assert (sighting.track, sighting.detected, sighting.score) == (1, True, 0.3)


@pytest.mark.parametrize(("jump", "track"), [(53, 1), (72, 2)])  # overlaps of a fifth and of a twentieth
def test_who_hardly_overlaps_is_somebody_else(jump: float, track: int) -> None:
    tracker = FaceTracker()
    tracker.update(0.0, [face(100)])
    found = tracker.update(STEP_S, [face(100 + jump)])
    assert [sighting.track for sighting in found if sighting.detected] == [track]


def test_the_number_of_tracks_is_bounded_and_the_surest_begin(capsys: pytest.CaptureFixture[str]) -> None:
    crowd = [face(150.0 * k, score=0.5 + k / 200) for k in range(50)]
    tracker = FaceTracker()
    first = tracker.update(0.0, crowd)
    assert len(first) == MAX_TRACKS
    assert {sighting.score for sighting in first} == {detection.score for detection in crowd[50 - MAX_TRACKS :]}
    assert [sighting.track for sighting in tracker.update(0.1, crowd)] == list(range(1, MAX_TRACKS + 1))
    assert capsys.readouterr().err.count(f"more than {MAX_TRACKS} faces at once") == 1


def test_nobody_is_nothing_and_time_does_not_run_backwards() -> None:
    tracker = FaceTracker()
    assert tracker.update(0.0, []) == []
    tracker.update(1.0, [face(1)])
    for time_s in (1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="does not come after 1"):
            tracker.update(time_s, [])
