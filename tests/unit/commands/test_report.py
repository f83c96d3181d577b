"""The command line makes a report of files, and refuses those that are none in one sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from report_pages import bench_json, planted

VERIFICATION = planted(30, names=("a", "b", "c"))
BENCH = bench_json()
HUGE = "1" + "0" * 400


def altered(content: dict[str, Any], place: tuple[Any, ...], text: str) -> str:
    """JSON in which something is replaced by ``text``, which need not be JSON that Python would write."""
    changed = copy.deepcopy(content)
    where: Any = changed
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = "@@"
    return json.dumps(changed).replace('"@@"', text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"a": NaN}', "nan is not a number"),
        ('{"a": -1e999}', "-1e999 is not a number"),
        ("[1]", "instead of a table"),
        ("{}", "has the format None"),
        ('{"format": 3}', "v.json: the verification has the format 3"),
    ],
)
def test_a_file_that_verify_did_not_write_is_refused(cli: Any, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.json").write_text(text)
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert message.lower() in result.output.replace("\n", " ").lower()
    assert not (tmp_path / "r.html").exists()


def test_what_verify_and_bench_wrote_is_shown(cli: Any, tmp_path: Path) -> None:
    """So that what is refused below is refused for what was altered."""
    (tmp_path / "v.json").write_text(json.dumps(VERIFICATION))
    (tmp_path / "b.json").write_text(json.dumps(BENCH))
    result = cli("report", tmp_path / "v.json", "--bench", tmp_path / "b.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.output


def test_a_page_does_not_replace_what_it_is_made_of(cli: Any, tmp_path: Path) -> None:
    for name, content in (("v.json", VERIFICATION), ("b.json", BENCH)):
        (tmp_path / name).write_text(json.dumps(content))
    for name in ("v.json", "b.json"):
        result = cli("report", tmp_path / "v.json", "--bench", tmp_path / "b.json", "-o", tmp_path / name)
        assert result.exit_code == 2
        assert name in result.output.replace("\n", "")
    assert json.loads((tmp_path / "v.json").read_text()) == VERIFICATION
    assert json.loads((tmp_path / "b.json").read_text()) == BENCH


@pytest.mark.parametrize("text", ["NaN", "1e999", HUGE, '"\\ud800"'])
def test_what_no_result_can_hold_is_refused(cli: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "v.json").write_text(altered(VERIFICATION, ("truth", "uar"), text))
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "v.json" in result.output.replace("\n", "")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("machine",), '"\\ud800"'),
        (("in_process",), "[]"),
        (("in_process", 0, "name"), '"\\u0001"'),
        (("in_process", 0, "throughput"), "[]"),
        (("in_process", 0, "latency_ms"), "[]"),
        (("in_process", 0, "throughput", 0), "-1"),
        (("in_process", 0, "throughput", 0), "1e308"),
        (("in_process", 0, "latency_ms", 0), HUGE),
        (("served",), '[{"name": "served", "concurrency": 1, "rounds": []}]'),
        (("subject", "manifest_sha256"), '"ef"'),
        (("subject",), "null"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(cli: Any, tmp_path: Path, place: tuple[Any, ...], value: str) -> None:
    (tmp_path / "v.json").write_text(json.dumps(VERIFICATION))
    (tmp_path / "b.json").write_text(altered(BENCH, place, value))
    result = cli("report", tmp_path / "v.json", "--bench", tmp_path / "b.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "b.json" in result.output.replace("\n", "")


def test_a_missing_file_is_named(cli: Any, tmp_path: Path) -> None:
    result = cli("report", tmp_path / "v.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "v.json" in result.output.replace("\n", "")
