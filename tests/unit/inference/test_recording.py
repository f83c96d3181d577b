import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from dfer_deploy.clips.faces import Box
from dfer_deploy.files import json_text
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.window_files import write_csv, write_results
from dfer_deploy.inference.windows import Face, Window

LABELS = ("happiness", "=HYPERLINK(0)")


def window(track: int, start_s: float, best: int = 0, length_s: float = 1.5) -> Window:
    logits = np.array([2.0, 1.0] if best == 0 else [1.0, 2.0], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    return Window(track, start_s, start_s + length_s, logits, probabilities, 16, 0.75, LABELS)


@pytest.fixture
def recording() -> Recording:
    recording = Recording(LABELS)
    for number, found in (
        (0, window(2, 0.4, 1)),
        (0, window(1, 0.0)),
        (0, window(1, 0.4, 1)),
        (0, window(1, 0.8)),
        (1, window(0, math.nan)),
        (2, window(1, 0.0)),
    ):
        recording.add_window(number, found)
    return recording


def test_windows_come_back_by_track_and_time(recording: Recording) -> None:
    found = list(recording.windows(0))
    assert [(item.track, item.start_s) for item in found] == [(1, 0.0), (1, 0.4), (1, 0.8), (2, 0.4)]
    expected = window(1, 0.4, 1)
    assert np.array_equal(found[1].logits, expected.logits)
    assert np.array_equal(found[1].probabilities, expected.probabilities)
    assert (found[1].end_s, found[1].frames, found[1].detection) == (expected.end_s, 16, 0.75)
    assert (found[1].expression, found[1].confidence) == ("=HYPERLINK(0)", expected.probabilities[1])
    assert [item.start_s for item in recording.windows(0, track=2)] == [0.4]
    assert math.isnan(next(recording.windows(1)).end_s)
    assert (recording.count(), recording.count(0), recording.count(7)) == (6, 4, 0)
    recording.forget(0)
    assert (recording.count(), recording.count(0)) == (2, 0)


def test_tracks_are_summed_up(recording: Recording) -> None:
    first, second = recording.tracks(0)
    assert (first.track, first.start_s, first.end_s, first.windows) == (1, 0.0, 2.3, 3)
    assert first.shares == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert list(first.shares) == [0, 1]
    assert (second.track, second.shares) == (2, {1: 1.0})


def test_the_window_around_a_time_is_the_one_whose_middle_is_nearest(recording: Recording) -> None:
    # The middles are at 0.75, 1.15 and 1.55 s.
    for time_s, start_s in ((0.0, 0.0), (0.94, 0.0), (0.96, 0.4), (1.34, 0.4), (1.36, 0.8), (99.0, 0.8)):
        found = recording.window_around(0, 1, time_s)
        assert found is not None
        assert found.start_s == start_s, time_s
    assert recording.window_around(0, 9, 0.0) is None


def test_boxes_come_back_by_their_time(recording: Recording) -> None:
    crop = np.zeros((4, 4, 3), np.uint8)
    for step in range(3):
        for track in (2, 1):
            recording.add_box(0, step / 6, Face(track, crop, box=Box(step, track, step + 5, 9)))
        recording.add_box(0, step / 6, Face(0, crop))
    assert recording.boxes(0, 1 / 6) == {1: Box(1, 1, 6, 9), 2: Box(1, 2, 6, 9)}
    assert recording.boxes(0, 0.1) == {}
    assert recording.boxes(1, 0.0) == {}
    recording.add_box(1, 1 / 6, Face(1, crop, box=Box(0, 0, 5, 9)))
    recording.forget(0)
    assert recording.boxes(0, 1 / 6) == {}
    assert recording.boxes(1, 1 / 6) == {1: Box(0, 0, 5, 9)}


def test_the_csv_opens_again_and_holds_no_formula(recording: Recording, tmp_path: Path) -> None:
    inputs = [Path("=cmd|' /C calc'!A0.mp4"), Path("folder"), Path('a "b", c.mp4')]
    write_csv(tmp_path / "a.csv", recording, inputs)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "input", "track", "start_s", "end_s", "frames", "detection", "expression", "confidence", "happiness",
        "'=HYPERLINK(0)",
    ]  # fmt: skip
    assert [row["input"] for row in rows] == ["'=cmd|' /C calc'!A0.mp4"] * 4 + ["folder", 'a "b", c.mp4']
    assert [row["expression"] for row in rows[:2]] == ["happiness", "'=HYPERLINK(0)"]
    assert (rows[1]["start_s"], rows[1]["end_s"], rows[1]["track"]) == ("0.4", "1.9", "1")
    assert (rows[4]["start_s"], rows[4]["end_s"]) == ("", "")
    for row in rows:
        both = [float(row["happiness"]), float(row["'=HYPERLINK(0)"])]
        assert float(row["confidence"]) == max(both)
        assert sum(both) == pytest.approx(1, abs=1e-5)


def test_the_json_is_what_writing_it_at_once_would_give(recording: Recording, tmp_path: Path) -> None:
    about = {"answered_by": 'a "results": [] b', "failures": ["x"], "zzz": 1}
    inputs = [Path("a.mp4"), Path("folder"), Path("b.mp4")]
    path = tmp_path / "a.json"
    write_results(path, recording, inputs, about)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == json_text(content)
    assert {key: content[key] for key in about} == about
    assert [row["input"] for row in content["results"]] == ["a.mp4"] * 4 + ["folder", "b.mp4"]
    assert content["results"][1]["start_s"] == 0.4
    assert content["results"][4]["start_s"] is None
    assert set(content["results"][0]) == {
        "input", "track", "start_s", "end_s", "frames", "detection", "expression", "confidence", "probabilities",
        "logits",
    }  # fmt: skip
    write_results(path, Recording(LABELS), [], about)
    assert path.read_text(encoding="utf-8") == json_text(about | {"results": []})
