"""The command line makes a report of files, and refuses those that are none in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"a": NaN}', "NaN is no number"),
        ("[1]", "holds no table"),
        ("{}", "is missing in Content"),
        ('{"format": 3}', "v.json: format is 3"),
    ],
)
def test_a_file_that_verify_did_not_write_is_refused(cli: Any, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.json").write_text(text)
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert not (tmp_path / "r.html").exists()


def test_a_missing_file_is_named(cli: Any, tmp_path: Path) -> None:
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "v.json cannot be read" in result.output.replace("\n", "")
