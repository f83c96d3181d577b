"""What the benchmark of faces says about trackers that are right and wrong, on a scene of drawn faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import face_detection
import numpy as np
import pytest
from scenes import SCENES, frames_of, persons_drawn

from dfer_deploy.clips.faces import Box, Detection
from dfer_deploy.clips.tracks import FaceTracker, Sighting


@pytest.fixture(scope="module")
def crossing() -> list[face_detection.Sequenced]:
    """Two people who cross, and detections that tremble by a hundredth of the face."""
    rng = np.random.default_rng(0)

    def found(box: Box) -> Detection:
        x, y = rng.normal(0, 1.0, 2)
        return Detection(Box(box.left + x, box.top + y, box.right + x, box.bottom + y), 0.9)

    frames = frames_of(SCENES["crossing, 1 face/s each"], persons_drawn(2, count=4), face_detection.INTERVAL_S)
    return [(frame, [found(box) for box in frame.boxes.values()]) for frame in frames]


def test_the_truth_is_where_the_faces_are(crossing: list[face_detection.Sequenced]) -> None:
    first, last = crossing[0][0], crossing[-1][0]
    assert first.image.shape == (360, 640, 3)
    assert [first.boxes[k].centre[0] < 320 for k in (0, 1)] == [True, False]
    assert [last.boxes[k].centre[0] < 320 for k in (0, 1)] == [False, True]
    covered = [frame for frame, _ in crossing if frame.partial]
    assert 1 <= len(covered) < len(crossing) / 3
    assert all(list(frame.boxes) == [1] for frame in covered), "the second person is in front"
    # Skin where the box is: the ground has no such colour at this place.
    image, box = first.image, first.boxes[0]
    x, y = (round(value) for value in box.centre)
    assert np.abs(image[y - 5 : y + 5, x - 20 : x + 20].astype(int) - frame_without_faces()[y, x]).mean() > 10


def frame_without_faces() -> np.ndarray:
    return next(frames_of(SCENES["nobody"], [], face_detection.INTERVAL_S)).image.astype(int)


def test_a_tracker_that_is_right(crossing: list[face_detection.Sequenced]) -> None:
    smoothed = face_detection.tracked(crossing, 0.2)
    assert (smoothed["tracks"], smoothed["persons"], smoothed["switches"]) == (2, 2, 0)
    assert (smoothed["recall"], smoothed["false_positives"]) == (1.0, 0)
    assert smoothed["iou"] > 0.9
    assert smoothed["trembling"] < face_detection.tracked(crossing, 0.0)["trembling"]


def test_swapped_tracks_and_invented_faces_are_counted(
    crossing: list[face_detection.Sequenced], monkeypatch: pytest.MonkeyPatch
) -> None:
    update = FaceTracker.update

    def changed(self: FaceTracker, time_s: float, detections: Sequence[Detection]) -> list[Sighting]:
        seen = update(self, time_s, detections)
        if 3.9 < time_s < 4.1:
            seen = [Sighting(3 - s.track, s.box, s.score, s.detected) for s in seen]
        if time_s > 5:
            seen = [*seen, Sighting(9, Box(0, 0, 30, 30), 0.9, True)]
        return seen

    monkeypatch.setattr(FaceTracker, "update", changed)
    wrong = face_detection.tracked(crossing, 0.0)
    assert wrong["switches"] == 4, "two people there and back"
    assert wrong["false_positives"] == sum(frame.time_s > 5 for frame, _ in crossing)
    assert wrong["tracks"] == 3


def test_the_answers_of_windows_are_those_of_their_frames(own_checkpoint: Path) -> None:
    from dfer_deploy.checkpoints.checkpoint import load_checkpoint
    from dfer_deploy.runtimes.torch_predictor import TorchPredictor

    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(21)]
    with TorchPredictor(load_checkpoint(own_checkpoint).build_model()) as predictor:
        windows = [np.stack(crops[k : k + 16]) for k in (0, 4)]
        expected = predictor.predict(np.stack(windows)).logits
        assert face_detection.answers(predictor, crops) == pytest.approx(expected, abs=1e-4)
        padded = np.stack([*crops[:5], *[crops[4]] * 11])[None]
        assert face_detection.answers(predictor, crops[:5]) == pytest.approx(predictor.predict(padded).logits, abs=1e-4)
