"""docs/python.md is what the docstrings say, and the package offers what it lists."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import dfer_deploy

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_current() -> None:
    made = runpy.run_path(str(DOCS / "python_reference.py"))["page"]()
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    assert page == made, "run: python docs/python_reference.py"


def test_the_page_lists_every_public_name() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    assert [name for name in dfer_deploy.__all__ if name != "__version__" and f"### {name}\n" not in page] == []


def test_what_the_page_calls_a_result_or_an_option_can_be_imported() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    listed = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]
    made_by_others = {"LoadedStream", "Stream", "AsyncStream", "Regression"}
    assert {name for name in listed if name not in dfer_deploy.__all__} == made_by_others


@pytest.mark.parametrize("name", dfer_deploy.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(dfer_deploy, name)
    assert name in dir(dfer_deploy)
