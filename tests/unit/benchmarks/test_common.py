"""Turns, spreads and pictures."""

from argparse import Namespace
from pathlib import Path

import common
import pytest
from PIL import Image


def test_contestants_take_turns_and_each_begins_a_round() -> None:
    called: list[str] = []
    contestants = {name: lambda n=name: called.append(n) for name in "abc"}
    times = common.take_turns(contestants, 3)
    assert called[6:] == list("abc" + "bca" + "cab")  # before, each was called to warm up and to be timed
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_figures_keep_the_rounds() -> None:
    found = common.figures([3.0, 1.0, 2.0])
    assert found == {"median": 2.0, "low": 1.0, "high": 3.0, "rounds": [3.0, 1.0, 2.0]}
    assert common.in_words(found) == "2 (1–3)"


def test_a_result_is_written_with_machine_and_picture(tmp_path: Path) -> None:
    picture, (bars, lines) = common.figure("title", 2, quick=True)
    common.draw_bars(bars, "seconds", {"one": [1.0, 2.0], "other": [3.0]})
    common.draw_lines(lines, [1, 2], {"way": [[1.0, 2.0], [2.0]]}, label="clips/s", x_label="in flight")
    arguments = Namespace(json=tmp_path / "r.json", plot=tmp_path / "p.png", quick=True, rounds=2)
    common.write(arguments, {"contestants": {}}, picture)
    assert '"machine"' in arguments.json.read_text()
    with Image.open(arguments.plot) as image:
        assert image.format == "PNG"


def test_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        common.parser("x.py", "").parse_args(["--rounds", "0"])
    assert "expected at least 1" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = tmp_path / "nowhere" / "r.json"
    monkeypatch.setattr("sys.argv", ["x.py", "--json", str(result), "--plot", str(tmp_path / "p.png")])
    with pytest.raises(SystemExit):
        common.parsed(common.parser("x.py", ""))
    assert str(result) in capsys.readouterr().err
