"""Each data set's own files, and every way in which they can be wrong. The clips are empty: nothing decodes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import TrainingError
from dfer_deploy.train import layouts
from dfer_deploy.train.recipe import Recipe, recipe_from_toml

SEVEN = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_clips(root: Path, *names: str, frames: int = 2) -> None:
    for name in names:
        for number in range(frames):
            write(root, f"{name}/{number:05d}.jpg", "")


def recipe_of(name: str, root: Path, *overrides: str) -> Recipe:
    return recipe_from_toml(name, [f"data.root={root}", *overrides])


def read(clips: list[Annotation], root: Path, recipe: Recipe) -> list[tuple[str, str, str]]:
    """Name, place and class name of every clip."""
    names = recipe.model.prompts.class_names
    return [(clip.name, clip.path.relative_to(root).as_posix(), names[clip.label]) for clip in clips]


@pytest.fixture
def dfew(tmp_path: Path) -> Path:
    write(tmp_path, "EmoLabel_DataSplit/train(single-labeled)/set_2.csv", "video_name,label\n2522,6\n12,1\n7,4\n")
    write(tmp_path, "EmoLabel_DataSplit/test(single-labeled)/set_2.csv", "video_name,label\r\n1,2\r\n")
    make_clips(tmp_path, *(f"Clip/clip_224x224/{name}" for name in ("02522", "00012", "00007", "00001")))
    return tmp_path


@pytest.fixture
def ferv39k(tmp_path: Path) -> Path:
    write(tmp_path, "4_setups/All_scenes/train_All.csv", "Action/Happy/0267 Happy\nWar/Angry/0001 Angry\n")
    write(tmp_path, "4_setups/All_scenes/test_All.csv", "Talkshow/Fear/0015 Fear\n")
    make_clips(tmp_path, *(f"2_ClipsforFaceCrop/{name}" for name in ("Action/Happy/0267", "War/Angry/0001")))
    make_clips(tmp_path, "2_ClipsforFaceCrop/Talkshow/Fear/0015")
    return tmp_path


@pytest.fixture
def mafw(tmp_path: Path) -> Path:
    folder = "Train & Test Set/single/no_caption/set_5"
    write(tmp_path, f"{folder}/train.txt", "03747.mp4 anger\n00001.mp4 disappointment\n")
    write(tmp_path, f"{folder}/test.txt", "00025.mp4\tcontempt\t一个男人 A man speaks.\n")
    make_clips(tmp_path, *(f"data/faces/{name}" for name in ("03747", "00001", "00025")))
    return tmp_path


def test_dfew(dfew: Path) -> None:
    recipe = recipe_of("dfew", dfew, "data.fold=2")
    clips = layouts.training_annotations(recipe)
    assert read(clips, dfew, recipe) == [
        ("2522", "Clip/clip_224x224/02522", "disgust"),
        ("12", "Clip/clip_224x224/00012", "happiness"),
        ("7", "Clip/clip_224x224/00007", "anger"),
    ]
    assert [clip.listed_frames for clip in clips] == [2, 2, 2]
    assert read(layouts.test_annotations(recipe), dfew, recipe) == [("1", "Clip/clip_224x224/00001", "sadness")]


def test_ferv39k(ferv39k: Path) -> None:
    recipe = recipe_of("ferv39k", ferv39k)
    assert read(layouts.training_annotations(recipe), ferv39k, recipe) == [
        ("Action/Happy/0267", "2_ClipsforFaceCrop/Action/Happy/0267", "happiness"),
        ("War/Angry/0001", "2_ClipsforFaceCrop/War/Angry/0001", "anger"),
    ]
    (test,) = read(layouts.test_annotations(recipe), ferv39k, recipe)
    assert test[2] == "fear"


def test_mafw_with_and_without_captions(mafw: Path) -> None:
    recipe = recipe_of("mafw", mafw, "data.fold=5")
    assert read(layouts.training_annotations(recipe), mafw, recipe) == [
        ("03747.mp4", "data/faces/03747", "anger"),
        ("00001.mp4", "data/faces/00001", "disappointment"),
    ]
    assert read(layouts.test_annotations(recipe), mafw, recipe) == [("00025.mp4", "data/faces/00025", "contempt")]


@pytest.mark.parametrize("order", [SEVEN, sorted(SEVEN)])
def test_the_order_of_the_model_s_classes_does_not_matter(dfew: Path, order: list[str]) -> None:
    """A label is a name before it is an index."""
    recipe = recipe_of("dfew", dfew, "data.fold=2", f"model.prompts.class_names={order}")
    clips = layouts.training_annotations(recipe)
    assert [order[clip.label] for clip in clips] == ["disgust", "happiness", "anger"]


@pytest.mark.parametrize(
    ("folder", "old", "new"),
    [
        ("EmoLabel_DataSplit", "train(single-labeled)", "train(single_labeled)"),
        ("EmoLabel_DataSplit", "train(single-labeled)", "train"),
    ],
)
def test_documented_variants_of_a_list_are_found(dfew: Path, folder: str, old: str, new: str) -> None:
    (dfew / folder / old).rename(dfew / folder / new)
    assert len(layouts.training_annotations(recipe_of("dfew", dfew, "data.fold=2"))) == 3


def test_a_list_of_one_s_own_has_no_variants(dfew: Path) -> None:
    with pytest.raises(TrainingError, match=r"mine_2.csv cannot be read .*is --data the folder of the data set"):
        layouts.training_annotations(recipe_of("dfew", dfew, "data.fold=2", "data.train_list=mine_{fold}.csv"))


@pytest.mark.parametrize(
    ("old", "new"),
    [("Clip/clip_224x224", "Clip/clip_224x224_16f"), ("Clip/clip_224x224", "data")],
)
def test_other_folders_of_clips_are_found_and_named(
    dfew: Path, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (dfew / old).rename(dfew / new)
    clips = layouts.training_annotations(recipe_of("dfew", dfew, "data.fold=2"))
    assert clips[0].path == dfew / new / "02522"
    assert f"the clips are read from {dfew / new}" in capsys.readouterr().err


def test_a_doubled_folder_of_ferv39k_is_found(ferv39k: Path) -> None:
    (ferv39k / "2_ClipsforFaceCrop").rename(ferv39k / "inner")
    (ferv39k / "2_ClipsforFaceCrop").mkdir()
    (ferv39k / "inner").rename(ferv39k / "2_ClipsforFaceCrop/2_ClipsforFaceCrop")
    clips = layouts.training_annotations(recipe_of("ferv39k", ferv39k))
    assert clips[0].path.is_dir()


def test_data_root_says_where_the_clips_are(dfew: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    make_clips(elsewhere, "02522")
    recipe = recipe_of("dfew", dfew, "data.fold=2", f"data.data_root={elsewhere}")
    assert layouts.training_annotations(recipe)[0].path == elsewhere / "02522"


def test_a_video_stands_for_a_frame_folder(mafw: Path) -> None:
    for frame in (mafw / "data/faces/03747").iterdir():
        frame.unlink()
    (mafw / "data/faces/03747").rmdir()
    write(mafw, "data/faces/03747.mp4", "")
    clips = layouts.training_annotations(recipe_of("mafw", mafw, "data.fold=5"))
    assert (clips[0].path.name, clips[0].listed_frames) == ("03747.mp4", 0)


def test_a_label_without_its_clip_stays_for_the_reader_to_report(dfew: Path) -> None:
    write(dfew, "EmoLabel_DataSplit/train(single-labeled)/set_2.csv", "video_name,label\n999,6\n12,1\n")
    absent, present = layouts.training_annotations(recipe_of("dfew", dfew, "data.fold=2"))
    assert not absent.path.exists()
    assert present.path.exists()


def test_classes_without_a_clip_are_warned_about(dfew: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.training_annotations(recipe_of("dfew", dfew, "data.fold=2"))
    assert "has no clip of sadness, neutral, surprise, fear" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train_All.csv is empty; expected lines such as: Action/Happy/0267 Happy"),
        ("\n \n", "train_All.csv is empty"),
        ("Action/Happy/0267\n", "line 1 is 'Action/Happy/0267', expected such as"),
        ("path label\n\nAction/Happy/0267 Hapy\n", "line 3 has the label 'Hapy'.*did you mean 'Happy'"),
        ("Action/Happy/0267 0\n", "has the label '0'.*expected one of Happy, Sad, Neutral"),
        ("Action/Happy/0267 Sad\n", "says 'Sad' of Action/Happy/0267, which lies in a folder 'Happy'"),
        ("../Happy/0267 Happy\n", "names the clip '../Happy/0267'"),
        ("/etc/passwd Happy\n", "names the clip '/etc/passwd'"),
        (". Happy\n", "names the clip '.'"),
        ("Action/Happy/9999 Happy\n", "none of the 1 listed clips is in .*2_ClipsforFaceCrop.*say where they are"),
        ("x" * 300 + " Happy\n", "cannot be read .*name too long"),
    ],
)
def test_broken_lists_are_named(ferv39k: Path, text: str, message: str) -> None:
    write(ferv39k, "4_setups/All_scenes/train_All.csv", text)
    with pytest.raises(TrainingError, match=message):
        layouts.training_annotations(recipe_of("ferv39k", ferv39k))


def test_a_list_that_is_no_text_is_named(ferv39k: Path) -> None:
    (ferv39k / "4_setups/All_scenes/train_All.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(TrainingError, match="is not a text file"):
        layouts.training_annotations(recipe_of("ferv39k", ferv39k))


@pytest.mark.parametrize("name", ["dfew", "ferv39k", "mafw"])
def test_an_empty_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError, match=r"cannot be read .No such file.*is --data the folder of the data set"):
        layouts.training_annotations(recipe_of(name, tmp_path))


@pytest.mark.parametrize(
    ("lines", "names"),
    [("12,1\n7,4\n12,1\n", "12"), ("12,1\n00012,1\n", "12 and 00012"), ("12,1\n./12,4\n", "12 and ./12")],
)
def test_a_clip_is_listed_once(dfew: Path, lines: str, names: str) -> None:
    write(dfew, "EmoLabel_DataSplit/train(single-labeled)/set_2.csv", lines)
    with pytest.raises(TrainingError, match=rf"set_2.csv lists the clip {names} twice; remove one"):
        layouts.training_annotations(recipe_of("dfew", dfew, "data.fold=2"))


def test_clips_that_are_trained_on_and_tested_with_are_told(dfew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(layouts, "warn", said.append)
    recipe = recipe_of("dfew", dfew, "data.fold=2")
    training, tests = layouts.training_annotations(recipe), layouts.test_annotations(recipe)
    said.clear()  # classes without a clip
    layouts.warn_about_shared_clips(training, tests)
    assert said == []
    write(dfew, "EmoLabel_DataSplit/test(single-labeled)/set_2.csv", "video_name,label\n1,2\n007,4\n")
    tests = layouts.test_annotations(recipe)
    said.clear()
    layouts.warn_about_shared_clips(training, tests)
    assert len(said) == 1
    assert "1 of the 2 test clips are in the training list as well (the first: 007)" in said[0]


def test_label_names_must_be_classes_of_the_model(dfew: Path) -> None:
    with pytest.raises(TrainingError, match=r"label_names.1 is 'hapiness', which is none.*did you mean 'happiness'"):
        layouts.training_annotations(recipe_of("dfew", dfew, "data.label_names.1=hapiness"))


@pytest.fixture
def lists(tmp_path: Path) -> Callable[..., list[tuple[str, int]]]:
    """Reads the authors' list, MAFW fold 3, with further settings."""
    write(tmp_path, "MAFW_set_3_train.txt", "/their/disk/faces/03747 2 3\n/their/disk/faces/00001 2 10\n")
    make_clips(tmp_path, "clips/03747", "clips/00001")
    recipe = recipe_of(
        "mafw",
        tmp_path,
        "data.fold=3",
        "data.layout=lists",
        "data.train_list=MAFW_set_{fold}_train.txt",
        f"data.data_root={tmp_path / 'clips'}",
    )

    def read_with(label_names: dict[str, str]) -> list[tuple[str, int]]:
        clips = layouts.training_annotations(replace(recipe, data=replace(recipe.data, label_names=label_names)))
        assert all(clip.path.is_dir() for clip in clips)
        return [(clip.path.name, clip.label) for clip in clips]

    return read_with


def test_the_authors_lists_count_the_model_s_classes_or_are_translated(
    lists: Callable[..., list[tuple[str, int]]],
) -> None:
    assert lists({}) == [("03747", 3), ("00001", 10)]
    assert lists({"3": "fear", "10": "happiness"}) == [("03747", 6), ("00001", 0)]
    with pytest.raises(TrainingError, match=r"has the label '3', which data.label_names does not know"):
        lists({"2": "fear", "10": "happiness"})
    with pytest.raises(TrainingError, match="has the label 'anger', but annotation lists have class indices"):
        lists({"anger": "anger"})
