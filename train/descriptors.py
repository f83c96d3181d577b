"""Descriptors of expressions: class texts made from a language model's answers, and the file that contains them.

Zhao and Patras, BMVC 2023, section 3.3: a large language model is asked which visual features are useful for each
expression, and its features become one text, such as "widened eyes, an open mouth, and raised eyebrows.". The file is
TOML with one table, ``[descriptors]``, from class names to texts.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dfer_deploy.errors import DferDeployError, TrainingError
from dfer_deploy.files import atomic_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUESTION = "What are useful visual features for the facial expression of {name}?"
"""The question of the paper (section 3.3)."""

MAX_TOKENS = 77 - 2 - 16
"""Largest number of tokens of a descriptor. CLIP reads 77 tokens, which include start, end and up to 16 contexts."""

_MAX_BYTES = 1 << 20
"""Largest prompts file. It contains a sentence for each class, so a larger file is a mistake."""

_MAX_ANSWER_LENGTH = 20_000
"""Largest number of characters of an answer that are read. Useful answers have a few hundred."""

_ITEM = re.compile(r"\s*(?:[-*•–·]|\(?\d{1,2}[.):])\s+(.+)")
_INTRODUCTION = re.compile(
    r"^.*?(?:\b(?:includ(?:es?|ing)|such as|features?\b.*?\b(?:are|is))\b|:)[\s:]+", re.IGNORECASE
)
_TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BETWEEN = re.compile(r"\s*[,;]\s*(?:and\s+|or\s+)?")


class UnusableAnswerError(DferDeployError):
    """The answer of a language model does not contain a feature that CLIP could read."""


def features_from_answer(answer: str) -> list[str]:
    """Return the features in an answer, in its order, in lower case and without repetitions.

    In a bulleted or numbered list, each item gives one feature: the text before a colon or a dash, or the whole item if
        only one word stands before it ("Eyes: wide open" becomes "eyes wide open"). Other text is split at its commas,
        after removing beginnings such as "… features are" and "… include".
    """
    lines = _printable(answer[:_MAX_ANSWER_LENGTH]).splitlines()
    items = [match.group(1) for line in lines if (match := _ITEM.fullmatch(line))]
    if items:
        pieces = [_headline(item) for item in items]
    else:
        sentences = re.split(r"(?<=[.!?])\s+", " ".join(lines))
        pieces = [piece for sentence in sentences for piece in _BETWEEN.split(_INTRODUCTION.sub("", sentence, count=1))]
    features = [_cleaned(piece) for piece in pieces]
    return list(dict.fromkeys(feature for feature in features if feature))


def descriptor_from_features(features: Sequence[str]) -> tuple[str, list[str]]:
    """Join as many features as CLIP reads into one sentence; return it and the features that did not fit.

    Raises:
        UnusableAnswerError: there are fewer than two features (a refusal is often one sentence), or the first one alone
            is too long.
    """
    from dfer_deploy.model.prompts import class_tokens

    if len(features) < 2:
        raise UnusableAnswerError(
            f"the answer has {len(features)} features ({', '.join(features)[:80]}), expected 2 or more"
        )
    for count in range(len(features), 0, -1):
        text = _sentence(features[:count])
        if len(class_tokens(text)) <= MAX_TOKENS:
            return text, list(features[count:])
    raise UnusableAnswerError(
        f"the feature {features[0][:80]!r} is longer than {MAX_TOKENS} tokens, CLIP reads no more"
    )


def read_descriptors(path: Path) -> dict[str, str]:
    """Read the descriptors in a file, by class name.

    Raises:
        DferDeployError: the file is missing, is not a prompts file, or contains values other than texts.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        table = tomllib.loads(data.decode("utf-8")) if len(data) <= _MAX_BYTES else {}
    except OSError as error:
        raise TrainingError(
            f"the prompts file {path} cannot be read ({error.strerror}); dfer-deploy describe writes one"
        ) from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number with too many digits
        raise TrainingError(f"the prompts file {path} is not valid TOML ({error}); correct it") from error
    descriptors = table.get("descriptors")
    if not isinstance(descriptors, dict) or len(table) != 1:
        raise TrainingError(
            f"{path} is not a prompts file; expected the one table [descriptors] with a text for every class name"
        )
    for name, text in descriptors.items():
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise TrainingError(f"{path} has {text!r} for {name!r}, expected a text in one line; correct it")
    return descriptors


def write_descriptors(path: Path, descriptors: Mapping[str, str], model: str) -> None:
    """Write the file that ``read_descriptors`` reads, atomically, with the name of the language model in a comment."""
    # JSON's strings are TOML's basic strings if every character is printable.
    rows = [
        f"{json.dumps(n, ensure_ascii=False)} = {json.dumps(t, ensure_ascii=False)}" for n, t in descriptors.items()
    ]
    lines = [
        f"# Answers of {model} to: {QUESTION.format(name='…')}",
        "# Read them before training: they are what the model will look for.",
        "[descriptors]",
        *rows,
    ]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def descriptors_for(class_names: Sequence[str], descriptors: Mapping[str, str], path: Path) -> tuple[str, ...]:
    """Return the descriptor of every class, in the order of the classes.

    Raises:
        DferDeployError: a class does not have a descriptor; the message names the most similar name in the file.
    """
    for name in class_names:
        if name not in descriptors:
            near = difflib.get_close_matches(name, descriptors, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(descriptors) or 'none'};"
            raise TrainingError(
                f"{path} has no descriptor for the class {name!r}; {hint} add one: dfer-deploy describe"
            )
    return tuple(descriptors[name] for name in class_names)


def _printable(text: str) -> str:
    """Remove markup, and characters that a terminal would obey."""
    text = _TERMINAL_ESCAPE.sub("", text)
    text = re.sub(r"[*_`#]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}", "", text.replace("\t", " ").replace("\r", "\n"))
    return "".join(character for character in text if character.isprintable() or character == "\n")


def _headline(item: str) -> str:
    head, separator, tail = re.sub(r"\([^)]*\)", "", item).partition(":")
    if not separator:
        head, separator, tail = head.partition(" - ")
    if not tail.strip():
        return head
    first = re.split(r"(?<=\w)[.;]\s", tail.strip())[0]
    return head if len(head.split()) > 1 else f"{head.strip()} {first}"


def _cleaned(piece: str) -> str:
    piece = re.sub(r"\([^)]*\)", "", piece)
    piece = re.sub(r"\s+", " ", piece).strip(" .,;:!?-–*•·\"'")
    piece = re.sub(r"^(?:and|or)\s+", "", piece)
    return piece.lower()


def _sentence(features: Sequence[str]) -> str:
    if len(features) == 1:
        return f"{features[0]}."
    return f"{', '.join(features[:-1])}{',' if len(features) > 2 else ''} and {features[-1]}."
