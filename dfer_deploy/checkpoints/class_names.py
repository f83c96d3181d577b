"""Class names for the class texts of the reference implementation."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib import resources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@functools.cache
def _names_by_text() -> dict[str, str]:
    path = resources.files("dfer_deploy.checkpoints").joinpath("prompts.toml")
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    names = {descriptor: name for name, descriptor in table["descriptors"].items()}
    for template in table["templates"]:
        names |= {template.format(name=name): name for name in table["descriptors"]}
    return names


def names_for_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Choose a name for every class text: the released name of a known text, otherwise ``class_0``, ``class_1``, …

    If two texts would get the same name, all names are ``class_0``, ``class_1``, ….
    """
    known = _names_by_text()
    names = [known.get(text, f"class_{index}") for index, text in enumerate(texts)]
    if len(set(names)) < len(names):
        return tuple(f"class_{index}" for index in range(len(texts)))
    return tuple(names)
