import numpy as np
from PIL import Image

from dfer_deploy.drawing.overlay import Edges, Overlay

LABELS = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
ANSWER = np.array([0.03, 0.05, 0.02, 0.05, 0.04, 0.04, 0.77], np.float32)


def drawn(overlay: Overlay, size: tuple[int, int], boxes: dict[int, Edges]) -> np.ndarray:
    picture = Image.new("RGB", size, (200, 200, 200))
    overlay.draw(picture, boxes, dict.fromkeys((track for track in boxes), ANSWER))
    return np.asarray(picture)


def is_covered(picture: np.ndarray, box: Edges) -> bool:
    """Whether anything is drawn inside a box."""
    left, top, right, bottom = (int(edge) for edge in box)
    return bool((picture[top + 5 : bottom - 4, left + 5 : right - 4] != 200).any())


def test_two_faces_have_panels_with_all_classes(texts: list[str]) -> None:
    boxes = {1: (100.0, 60.0, 220.0, 200.0), 2: (700.0, 60.0, 820.0, 200.0)}
    picture = drawn(Overlay(LABELS, (1280, 540)), (1280, 540), boxes)
    assert texts == ["1: fear 0.77", *LABELS, "2: fear 0.77", *LABELS]
    assert not any(is_covered(picture, box) for box in boxes.values())


def test_a_face_with_one_free_place_has_it_before_one_with_several(texts: list[str]) -> None:
    boxes = {1: (440.0, 200.0, 520.0, 280.0), 2: (300.0, 70.0, 360.0, 130.0)}
    picture = drawn(Overlay(LABELS, (640, 480)), (640, 480), boxes)
    assert texts.count("fear") == 2
    assert not any(is_covered(picture, box) for box in boxes.values())


def test_a_crowd_has_a_line_each_and_no_face_is_covered(texts: list[str]) -> None:
    boxes = {
        1 + column + 4 * row: (130.0 + 300 * column, 30.0 + 180 * row, 200.0 + 300 * column, 140.0 + 180 * row)
        for row in range(3)
        for column in range(4)
    }
    picture = drawn(Overlay(LABELS, (1280, 540)), (1280, 540), boxes)
    assert sorted(texts) == sorted(f"{track}: fear 0.77" for track in boxes)
    assert not any(is_covered(picture, box) for box in boxes.values())


def test_a_face_that_leaves_no_room_has_a_line(texts: list[str]) -> None:
    box = (120.0, 60.0, 360.0, 390.0)
    picture = drawn(Overlay(LABELS, (480, 480)), (480, 480), {1: box})
    assert texts == ["1: fear 0.77"]
    assert not is_covered(picture, box)


def test_panels_do_not_flicker_where_they_just_fit(texts: list[str]) -> None:
    overlay = Overlay(LABELS, (480, 480))

    def has_panel(right: float) -> bool:
        texts.clear()
        drawn(overlay, (480, 480), {1: (10.0, 10.0, right, 470.0)})
        return len(texts) > 1

    least = next(right for right in range(470, 100, -1) if has_panel(float(right)))
    # It stays while it fits, goes when it does not, and comes back when there is room to move.
    assert has_panel(least - 10.0)
    narrowest = next(right for right in range(least, 470) if not has_panel(float(right)))
    assert narrowest > least + 10
    assert not has_panel(narrowest - 2.0)
    assert has_panel(float(least))


def test_the_whole_picture_has_its_panel_in_the_corner(texts: list[str]) -> None:
    picture = drawn(Overlay(LABELS, (480, 480)), (480, 480), {0: (0.0, 0.0, 0.0, 0.0)})
    assert texts == ["fear 0.77", *LABELS]
    assert (picture[300:] == 200).all()


def test_text_follows_the_size_of_the_picture() -> None:
    def height(size: tuple[int, int]) -> int:
        picture = drawn(Overlay(LABELS, size), size, {0: (0.0, 0.0, 0.0, 0.0)})
        return int(np.nonzero((picture != 200).any(axis=(1, 2)))[0].max())

    assert height((1280, 720)) > 1.3 * height((640, 480))
