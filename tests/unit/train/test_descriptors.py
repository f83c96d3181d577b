"""A language model's answers made into class texts, and the file that holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_deploy.errors import TrainingError
from dfer_deploy.model.prompts import class_tokens
from dfer_deploy.train.descriptors import (
    MAX_TOKENS,
    UnusableAnswerError,
    descriptor_from_features,
    features_from_answer,
    read_descriptors,
    write_descriptors,
)


@pytest.mark.parametrize(
    ("answer", "features"),
    [
        ("- Smiling mouth\n- Raised cheeks.\n* wrinkled eyes\n", ["smiling mouth", "raised cheeks", "wrinkled eyes"]),
        (
            "Sure! Useful features are:\n\n1. **Raised eyebrows**: The eyebrows are lifted, high.\n"
            "2) Eyes: wide open. Always.\n3. Parted lips (slightly)\n\nI hope this helps, bye!",
            ["raised eyebrows", "eyes wide open", "parted lips"],
        ),
        (
            "Useful visual features for happiness include a smiling mouth, raised cheeks, and arched eyebrows.",
            ["a smiling mouth", "raised cheeks", "arched eyebrows"],
        ),
        (
            "Tears, drooping eyelids. The forehead is wrinkled.",
            ["tears", "drooping eyelids", "the forehead is wrinkled"],
        ),
        ("- tears\n- Tears\n- \n- a frown", ["tears", "a frown"]),
        ("\x1b[31m- red\x07 eyes\n- a\u202e frown", ["red eyes", "a frown"]),
        ("", []),
        ("\n •\n", []),
    ],
)
def test_lists_and_prose_become_features(answer: str, features: list[str]) -> None:
    assert features_from_answer(answer) == features


def test_features_become_one_sentence() -> None:
    assert descriptor_from_features(["tears", "a frown"]) == ("tears and a frown.", [])
    assert descriptor_from_features(["tears", "a frown", "red eyes"]) == ("tears, a frown, and red eyes.", [])


def test_what_clip_does_not_read_is_cut_at_a_whole_feature() -> None:
    features = [f"the eyebrows are raised {index} millimetres" for index in range(20)]
    text, dropped = descriptor_from_features(features)
    kept = len(features) - len(dropped)
    assert dropped == features[kept:]
    assert all(feature in text for feature in features[:kept])
    assert len(class_tokens(text)) <= MAX_TOKENS < len(class_tokens(f"{text[:-1]}, {features[kept]}."))


@pytest.mark.parametrize("features", [[], ["i cannot help with that"], ["long " * 80, "short"]])
def test_answers_without_features_are_refused(features: list[str]) -> None:
    with pytest.raises(UnusableAnswerError):
        descriptor_from_features(features)


def test_the_file_keeps_every_letter(tmp_path: Path) -> None:
    descriptors = {"joy": 'a "wide" smile \\ and é', "a b.c": "tears = [1]", "#": "x"}
    write_descriptors(tmp_path / "a.toml", descriptors, "a model")
    assert read_descriptors(tmp_path / "a.toml") == descriptors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[descriptors]\na = 1\n", "has 1 for 'a', expected a text"),
        ('[descriptors]\na = " "\n', "expected a text"),
        ("a = 'x'\n", "is not a prompts file"),
        ("[descriptors]\n[more]\n", "is not a prompts file"),
        ("[descriptors", "is not valid TOML"),
        pytest.param("a = " + "[" * 100_000, "is not valid TOML", id="lists"),
        pytest.param("a = 1" + "0" * 5000, "is not valid TOML", id="large"),
        ("#" * (1 << 20) + "\n[descriptors]\n", "is not a prompts file"),
    ],
)
def test_other_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(TrainingError, match=message):
        read_descriptors(tmp_path / "a.toml")
    with pytest.raises(TrainingError, match="cannot be read"):
        read_descriptors(tmp_path / "none.toml")
