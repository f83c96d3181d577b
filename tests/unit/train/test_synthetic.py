"""The drawn data set: deterministic, in the real data sets' format, and with something to see in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_deploy.clips.annotations import read_annotations
from dfer_deploy.clips.reading import clip_from_path, frame_paths
from dfer_deploy.errors import TrainingError
from dfer_deploy.train import expressions
from dfer_deploy.train.drawn_faces import SUPERSAMPLING, draw_face, random_identity
from dfer_deploy.train.expressions import CLASS_NAMES, ActionUnits, movement
from dfer_deploy.train.pen import Pose
from dfer_deploy.train.synthetic import SyntheticSpec, contact_sheet, write_synthetic_dataset

SMALL = SyntheticSpec(
    clips_per_class_train=2, clips_per_class_test=7, identities_train=2, identities_test=7, image_size=32, seed=3
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "set"
    write_synthetic_dataset(root, SMALL, workers=1)
    return root


def bytes_of(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_lists_describe_the_folders(dataset: Path) -> None:
    for split, clips_per_class in (("train", 2), ("test", 7)):
        annotations = read_annotations(dataset / f"{split}.txt", len(CLASS_NAMES))
        assert [annotation.label for annotation in annotations] == list(range(7)) * clips_per_class
        for annotation in annotations:
            assert not Path(annotation.name).is_absolute()
            assert annotation.name.endswith(CLASS_NAMES[annotation.label])
            frames = frame_paths(annotation.path)
            assert frames[0].name == "00001.jpg"
            assert len(frames) == annotation.listed_frames
            assert SMALL.min_frames <= len(frames) <= SMALL.max_frames
            assert clip_from_path(annotation.path, 32).shape == (16, 32, 32, 3)


def test_some_clips_are_shorter_than_the_model_s_sixteen_frames(dataset: Path) -> None:
    lengths = {annotation.listed_frames for annotation in read_annotations(dataset / "test.txt", 7)}
    assert min(lengths) < 16 < max(lengths)


def test_description_says_that_the_faces_are_drawn(dataset: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["classes"] == list(CLASS_NAMES)
    assert described["spec"]["seed"] == 3
    assert described["clips"] == {"train": 14, "test": 49}
    assert "drawn" in described["note"]


def test_bytes_depend_on_the_seed_and_not_on_the_processes(dataset: Path, tmp_path: Path) -> None:
    write_synthetic_dataset(tmp_path / "two", SMALL, workers=2)
    assert bytes_of(tmp_path / "two") == bytes_of(dataset)
    other = SyntheticSpec(1, 1, 1, 1, image_size=32, seed=4)
    write_synthetic_dataset(tmp_path / "other", other, workers=1)
    assert not set(bytes_of(tmp_path / "other").values()) & set(bytes_of(dataset).values())


def test_same_request_is_skipped_and_another_is_refused(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    write_synthetic_dataset(dataset, SMALL)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    with pytest.raises(TrainingError, match="choose another folder"):
        write_synthetic_dataset(dataset, SyntheticSpec(seed=4))


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(TrainingError, match="choose another folder"):
        write_synthetic_dataset(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[ActionUnits]:
        raise KeyboardInterrupt

    monkeypatch.setattr("dfer_deploy.train.synthetic.movement", fail)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_dataset(tmp_path / "set", SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"), [("clips_per_class_train", 0), ("image_size", 8), ("max_frames", 9), ("seed", -1)]
)
def test_impossible_requests_are_named(field: str, value: int) -> None:
    with pytest.raises(TrainingError, match=f"{field} is {value}"):
        SyntheticSpec(**{field: value})


def test_train_and_test_persons_differ() -> None:
    from dfer_deploy.train.synthetic import _Clip

    spec = SyntheticSpec(clips_per_class_train=8, clips_per_class_test=8, identities_train=4, identities_test=4)
    persons = {split: {_Clip(spec, split, index).identity() for index in range(56)} for split in ("train", "test")}
    assert len(persons["train"]) == len(persons["test"]) == 4
    assert not persons["train"] & persons["test"]
    one = [_Clip(spec, "train", index) for index in range(56) if _Clip(spec, "train", index).person == 0]
    assert {clip.label for clip in one} == set(range(7))
    assert len({clip.identity() for clip in one}) == 1


def test_every_clip_has_random_numbers_of_its_own() -> None:
    from dfer_deploy.train.synthetic import _Clip

    clips = [
        _Clip(SyntheticSpec(seed=seed), split, index)
        for seed in (0, 1)
        for split in ("train", "test")
        for index in range(5)
    ]
    assert len({clip.generator().random() for clip in clips}) == len(clips)


@pytest.mark.parametrize("name", [name for name in CLASS_NAMES if name != "neutral"])
def test_expressions_rise_and_fall(name: str) -> None:
    strength = np.zeros(20)
    for seed in range(30):
        units = movement(name, 20, np.random.default_rng(seed))
        rest = movement("neutral", 20, np.random.default_rng(seed))
        strength += [np.abs(np.array(list(vars(unit).values()))).sum() for unit in units]
        strength -= [np.abs(np.array(list(vars(unit).values()))).sum() for unit in rest]
    apex = strength[7:12].mean()
    assert apex > 30
    assert strength[0] < 0.15 * apex
    assert strength[-1] < 0.15 * apex


def test_every_movement_can_be_seen() -> None:
    identity = random_identity(np.random.default_rng(1))
    backdrop = Image.new("RGB", (96 * SUPERSAMPLING,) * 2, "gray")
    rest = np.asarray(draw_face(backdrop, identity, Pose(), ActionUnits())).astype(float)
    assert rest.shape == (96, 96, 3)
    for name in expressions.ActionUnits.__dataclass_fields__:
        moved = np.asarray(draw_face(backdrop, identity, Pose(), ActionUnits(**{name: 1.0}))).astype(float)
        changed = np.abs(moved - rest).max(axis=2) > 20
        assert changed.sum() > 10, name
        assert changed[:20].sum() == 0, f"{name} moves the forehead's hair or the background"


def test_contact_sheet_shows_every_class_once(dataset: Path) -> None:
    sheet = contact_sheet(dataset, columns=5, tile=40)
    assert sheet.size == (96 + 5 * 40, 7 * 40)
    pixels = np.asarray(sheet)[:, 96:]
    rows = [pixels[row * 40 : (row + 1) * 40] for row in range(7)]
    assert all(row.std() > 5 for row in rows)
    assert len({row.tobytes() for row in rows}) == 7
