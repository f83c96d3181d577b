import csv
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from videos import numbered, two_squares, write_timed_video

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.reading import clip_from_path
from dfer_deploy.console import stdout
from dfer_deploy.drawing.contact_sheet import CropRow
from dfer_deploy.errors import DferDeployError
from dfer_deploy.inference.recording import Recording
from dfer_deploy.inference.windows import Face, Window, windows_of_video
from dfer_deploy.runtimes.available import open_predictor


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("squares")
def test_a_video_gives_every_output(cli: Any, bundle: Bundle, video: Path, tmp_path: Path) -> None:
    names = {"json": "o.json", "csv": "o.csv", "timeline": "t.png", "crops": "c.png", "video": "o.mp4"}
    out = {name: tmp_path / file for name, file in names.items()}
    result = cli("predict", "--bundle", bundle.path, video, *[word for n, f in out.items() for word in (f"--{n}", f)])
    assert result.exit_code == 0, result.output
    # The bundle's manifest states 0.1 s between frames.
    assert "apart" not in result.output
    content = json.loads(out["json"].read_text())
    assert content["frame_interval_s"] == 0.1
    rows = content["results"]
    assert [(row["track"], row["start_s"], row["end_s"]) for row in rows] == [
        *((1, start / 10, (start + 15) / 10) for start in (0, 4, 8, 12, 16, 20, 24, 28, 32, 34)),
        *((2, start / 10, (start + 15) / 10) for start in (20, 24, 28, 32, 34)),
    ]
    with out["csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["track"], float(line["start_s"]), line["expression"]) for line in lines] == [
        (str(row["track"]), row["start_s"], row["expression"]) for row in rows
    ]
    for picture in ("timeline", "crops"):
        with Image.open(out[picture]) as image:
            assert image.format == "PNG"
    assert clip_from_path(out["video"], 32).shape == (16, 32, 32, 3)
    assert "2.00–3.50" in result.output
    assert left_behind(tmp_path) == []


@pytest.mark.usefixtures("squares")
def test_many_windows_are_shown_as_tracks(cli: Any, bundle: Bundle, video: Path) -> None:
    result = cli("predict", "--bundle", bundle.path, video, "--stride", 1)
    assert result.exit_code == 0
    assert "0.00–4.90" in result.output
    assert "2.00–4.90" in result.output
    assert "%" in result.output


@pytest.mark.usefixtures("squares")
def test_several_inputs_have_a_picture_each(cli: Any, bundle: Bundle, video: Path, tmp_path: Path) -> None:
    other = write_timed_video(tmp_path / "b.mkv", two_squares(20, range(20), range(0)), range(0, 2000, 100))
    empty = write_timed_video(tmp_path / "none.mkv", two_squares(20, range(0), range(0)), range(0, 2000, 100))
    inputs = [video, empty, other, tmp_path / "missing.mp4", video]
    result = cli("predict", "--bundle", bundle.path, *inputs, "--crops", tmp_path / "c.png", "--json", tmp_path / "j")
    assert result.exit_code == 2
    assert "missing.mp4" in result.output
    assert "no face was found in" in result.output
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["c-1-a.png", "c-3-b.png", "c-5-a.png"]
    content = json.loads((tmp_path / "j").read_text())
    assert len(content["failures"]) == 1
    assert {row["input"] for row in content["results"]} == {str(video), str(other)}


@pytest.mark.usefixtures("squares")
def test_no_face_is_said_and_is_no_error(cli: Any, bundle: Bundle, tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mkv", two_squares(20, range(0), range(0)), range(0, 2000, 100))
    out = {"json": "j", "csv": "c", "timeline": "t.png", "crops": "c.png", "video": "v.mp4"}
    words = [word for name, file in out.items() for word in (f"--{name}", tmp_path / file)]
    result = cli("predict", "--bundle", bundle.path, video, *words)
    assert result.exit_code == 0
    assert "no face was found in" in result.output.replace("\n", " ")
    assert json.loads((tmp_path / "j").read_text())["results"] == []
    assert len((tmp_path / "c").read_text().splitlines()) == 1
    # What can be written is written, and of the rest it is said why not.
    assert clip_from_path(tmp_path / "v.mp4", 32).shape == (16, 32, 32, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "c", "j", "v.mp4"]
    lines = [line for line in result.output.splitlines() if "was not written, since no face was found" in line]
    assert ["t.png" in line or "c.png" in line for line in lines] == [True, True]


@pytest.mark.usefixtures("squares")
def test_a_face_that_left_has_no_box_and_no_crop(
    cli: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One person for 2 s; for 0.75 s more, the tracker holds the place.
    video = write_timed_video(tmp_path / "a.mkv", two_squares(40, range(20), range(0)), range(0, 4000, 100))
    rows: dict[int, CropRow] = {}
    boxes: list[list[int]] = []
    add_box = Recording.add_box
    monkeypatch.setattr(
        "dfer_deploy.api.predict_inputs.write_contact_sheet", lambda _, sampled, tracks: rows.update(sampled)
    )

    def watched(self: Recording, number: int, time_s: float, face: Face) -> None:
        boxes.append([face.track, round(10 * time_s)])
        add_box(self, number, time_s, face)

    monkeypatch.setattr(Recording, "add_box", watched)
    out = ("--crops", tmp_path / "c.png", "--video", tmp_path / "v.mp4")
    assert cli("predict", "--bundle", bundle.path, video, *out).exit_code == 0
    assert boxes == [[1, step] for step in range(20)]
    assert (rows[1].count, round(10 * rows[1].crops[-1][0])) == (20, 19)


@pytest.mark.parametrize(("stated_s", "end_s"), [(0.0, 5.0), (4.95, 4.95), (3600.0, 5.0), (1.0, 4.9)])
def test_the_timeline_ends_with_the_last_frame_whatever_the_header_states(
    cli: Any,
    bundle: Bundle,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stated_s: float,
    end_s: float,
) -> None:
    ends: list[float] = []
    monkeypatch.setattr("dfer_deploy.api.predict_inputs._length_s", lambda _: stated_s)
    monkeypatch.setattr("dfer_deploy.drawing.timeline.write_timeline", lambda *_, end_s, **__: ends.append(end_s))
    words = (video, "--faces", "none", "--timeline", tmp_path / "t.png")
    assert cli("predict", "--bundle", bundle.path, *words).exit_code == 0
    # The last of the frames is looked at after 4.9 s, the next one would be after 5.
    assert ends == [pytest.approx(end_s)]


def test_without_faces_the_whole_picture_is_answered(cli: Any, bundle: Bundle, tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(40), range(0, 4000, 100))
    result = cli("predict", "--bundle", bundle.path, video, "--faces", "none", "--json", tmp_path / "j")
    assert result.exit_code == 0
    rows = json.loads((tmp_path / "j").read_text())["results"]
    assert [(row["track"], row["start_s"]) for row in rows] == [(0, s / 10) for s in (0, 4, 8, 12, 16, 20, 24)]
    few = cli("predict", "--bundle", bundle.path, video, "--faces", "none", "--frame-interval-s", 0.2, "--stride", 16)
    assert "0.00–3.00" in few.output
    assert "0.80–3.80" in few.output


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_whole_is_one_answer_as_at_test_time(
    cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path, kind: str
) -> None:
    source = clip_list.parent / "000"
    if kind == "video":
        source = write_timed_video(tmp_path / "a.mkv", numbered(40), range(0, 4000, 100))
    result = cli("predict", "--bundle", bundle.path, source, "--whole", "--json", tmp_path / "j")
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "j").read_text())["results"]
    with open_predictor("onnxruntime-cpu", bundle) as predictor:
        expected = predictor.predict(clip_from_path(source, 32)[np.newaxis])
    logits = [row["logits"][label] for label in bundle.spec.prompts.class_names]
    assert logits == pytest.approx(expected.logits[0].tolist())
    assert row["end_s"] == (pytest.approx(4.0, abs=0.1) if kind == "video" else None)


def test_contradictions_are_one_sentence(
    cli: Any, bundle: Bundle, video: Path, clip_list: Path, tmp_path: Path
) -> None:
    folder = clip_list.parent / "000"
    where = ("predict", "--bundle", bundle.path)
    video = video.rename(video.with_suffix(".mp4"))
    before = video.read_bytes()
    for arguments, said in (
        ((video, "--whole", "--timeline", tmp_path / "t.png"), "--whole gives one answer"),
        ((video, "--whole", "--faces", "centerface"), "--whole gives one answer"),
        ((folder, "--faces", "centerface"), "is a folder of frames, which has no times"),
        ((folder, "--video", tmp_path / "v.mp4"), "is a folder of frames, which has no times"),
        ((video, "--faces", "none", "--video", video), "would replace the input"),
        ((video, "--faces", "none", "--json", tmp_path / "x", "--csv", tmp_path / "x"), "--csv would replace"),
        ((video, "--faces", "none", "--csv", tmp_path / "no" / "x"), "does not exist; make it first"),
        ((video, "--faces", "none", "--csv", "-"), "not the standard output"),
        ((video, "--faces", "none", "--json", "-"), "not the standard output"),
        ((video, "--faces", "none", "--csv", os.devnull), "not a regular file"),
        ((video, "--faces", "none", "--timeline", tmp_path / "t.jpg"), "expected a name that ends with .png"),
        ((video, "--faces", "none", "--crops", tmp_path / "t"), "expected a name that ends with .png"),
        ((video, "--faces", "none", "--video", tmp_path / "v.avi"), "expected a name that ends with .mp4"),
        ((tmp_path,), f"{tmp_path} is a folder with videos (a.mp4), expected one with the frames of one clip"),
        ((tmp_path, "--whole"), "is a folder with videos"),
        ((video, "--margin", 2.1), "2.1 is not in the range"),
        ((video, "--faces", "none", "--stride", 0), "0 is not in the range"),
        ((video, "--faces", "none", "--frame-interval-s", "nan"), "expected 0.01 to 60"),
    ):
        result = cli(*where, *arguments)
        assert result.exit_code == 2, arguments
        assert said in result.output, result.output
        assert "Traceback" not in result.output
    assert video.read_bytes() == before
    assert left_behind(tmp_path) == []


def test_a_missing_detector_names_the_extra_and_the_way_around(
    cli: Any, bundle: Bundle, video: Path, clip_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_deploy.clips.faces.importlib.util.find_spec", lambda _: None)
    result = cli("predict", "--bundle", bundle.path, video)
    assert result.exit_code == 2
    assert "[faces]" in result.output
    assert "--faces none" in result.output
    # What needs no detector does without.
    assert cli("predict", "--bundle", bundle.path, video, "--whole").exit_code == 0
    assert cli("predict", "--bundle", bundle.path, clip_list.parent / "000").exit_code == 0


@pytest.mark.usefixtures("squares")
def test_an_interruption_leaves_nothing(
    cli: Any, bundle: Bundle, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    for place in (
        "dfer_deploy.inference.recording.Recording.add_window",
        "dfer_deploy.drawing.annotated_video._View.drawn",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupted)
            result = cli(
                "predict", "--bundle", bundle.path, video, "--json", tmp_path / "j", "--video", tmp_path / "v.mp4"
            )
        assert result.exit_code == 130
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv"]
        assert threading.active_count() == before


@pytest.mark.usefixtures("squares")
def test_an_input_that_fails_half_way_has_no_answers(
    cli: Any, bundle: Bundle, video: Path, tmp_path: Path, clip_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **options: Any) -> Iterator[Window]:
        windows = windows_of_video(*arguments, **options)
        yield next(windows)
        windows.close()
        raise DferDeployError("the server went away")

    monkeypatch.setattr("dfer_deploy.api.predict_inputs.windows_of_video", failing)
    result = cli("predict", "--bundle", bundle.path, video, clip_list.parent / "000", "--json", tmp_path / "j")
    assert result.exit_code == 2
    content = json.loads((tmp_path / "j").read_text())
    assert [row["track"] for row in content["results"]] == [0]
    assert content["failures"] == ["the server went away"]


def test_files_are_replaced_only_if_something_was_answered(
    cli: Any, bundle: Bundle, tmp_path: Path, clip_list: Path
) -> None:
    (tmp_path / "a.mkv").write_bytes(b"no video")
    for name in ("j", "c"):
        (tmp_path / name).write_text("kept")
    out = ("--json", tmp_path / "j", "--csv", tmp_path / "c", "--faces", "none")
    result = cli("predict", "--bundle", bundle.path, tmp_path / "a.mkv", *out)
    assert result.exit_code == 2
    assert result.output.count("was not written, since there is no answer to any INPUT") == 2
    assert [(tmp_path / name).read_text() for name in ("j", "c")] == ["kept", "kept"]
    result = cli("predict", "--bundle", bundle.path, tmp_path / "a.mkv", clip_list.parent / "000", *out[:4])
    assert result.exit_code == 2
    assert len(json.loads((tmp_path / "j").read_text())["failures"]) == 1
    assert len((tmp_path / "c").read_text().splitlines()) == 2


@pytest.mark.usefixtures("squares")
def test_a_picture_that_fails_costs_no_answer(
    cli: Any, bundle: Bundle, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise DferDeployError("the disk is full")

    monkeypatch.setattr("dfer_deploy.api.predict_inputs.write_contact_sheet", failing)
    result = cli("predict", "--bundle", bundle.path, video, "--crops", tmp_path / "c.png", "--json", tmp_path / "j")
    assert result.exit_code == 2
    assert "Error: the disk is full" in result.output
    assert len(json.loads((tmp_path / "j").read_text())["results"]) == 15


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    cli: Any, bundle: Bundle, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no folder that nobody can write to")
    monkeypatch.setattr("dfer_deploy.commands.predict._open_model", lambda *_: pytest.fail("the work began"))
    result = cli("predict", "--bundle", bundle.path, video, "--faces", "none", "--csv", "/proc/a.csv")
    assert result.exit_code == 2
    assert "the folder /proc cannot be written" in result.output


def test_a_full_standard_output_is_one_sentence_and_the_files_are_there(
    bundle: Bundle, clip_list: Path, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    words = ["predict", "--bundle", str(bundle.path), str(clip_list.parent / "000"), "--csv", str(tmp_path / "c")]
    with Path("/dev/full").open("w") as full:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-m", "dfer_deploy", *words], stdout=full, stderr=-1, text=True, env=buffered
        )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the output cannot be printed (")
    assert len(done.stderr.splitlines()) == 1
    assert len((tmp_path / "c").read_text().splitlines()) == 2


@pytest.mark.usefixtures("squares")
@pytest.mark.parametrize(
    ("columns", "header", "first"),
    [
        (200, "input track seconds expression probabilities", "a.mkv 1 0.00–1.50"),
        (76, "track seconds expression probabilities", "1 0.00–1.50"),
        (60, "track seconds expression", "1 0.00–1.50"),
        (36, "track expression", "1"),
        (24, "expression", ""),
    ],
)
def test_a_narrow_terminal_has_fewer_columns_and_whole_words(
    cli: Any,
    bundle: Bundle,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    header: str,
    first: str,
) -> None:
    monkeypatch.setattr(stdout, "width", columns)
    monkeypatch.chdir(video.parent)
    result = cli("predict", "--bundle", bundle.path, video.name)
    assert result.exit_code == 0
    lines = [line for line in result.output.splitlines() if line[:1] in ("┃", "│")]
    cells = [[cell.strip() for cell in line[1:-1].replace("┃", "│").split("│")] for line in lines]
    assert " ".join(cells[0]) == header
    best = [row for row in cells[1:] if row[0]]
    assert len(best) == 15
    assert " ".join(best[0]).startswith(first)
    # No word and no number is broken, and each expression stands beside its number.
    assert all(re.fullmatch(r"([a-z]+\s[01]\.\d{3}(  )?)+", row[-1]) for row in cells[1:])
    assert max(map(len, result.output.splitlines())) <= columns


def test_names_do_not_reach_the_terminal_as_escape_sequences(cli: Any, bundle: Bundle, video: Path) -> None:
    named = video.rename(video.with_name("a\x1b[31m\x9bb.mkv"))
    missing = video.with_name("no\x1b]0;x\x07.mkv")
    crops = ("--crops", video.with_name("\x1b[1m") / "c.png")
    result = cli("predict", "--bundle", bundle.path, named, missing, "--faces", "none", "--stride", 32)
    assert r"a\x1b[31m\x9bb.mkv" in result.output
    assert r"no\x1b]0;x\x07.mkv does not exist" in result.output
    for more in ("", cli("inspect", missing).output, cli("predict", "--bundle", bundle.path, named, *crops).output):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.output + more)


@pytest.mark.usefixtures("squares")
def test_many_windows_fit_a_narrow_terminal(
    cli: Any, bundle: Bundle, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdout, "width", 40)
    other = video.with_name("a video with a long name.mkv")
    other.symlink_to(video)
    result = cli("predict", "--bundle", bundle.path, video, other, "--stride", 1)
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) < 12
    assert "ong name.mkv" in result.output


def test_what_the_manifest_does_not_know_is_said(cli: Any, bundle: Bundle, tmp_path: Path, video: Path) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.path.iterdir():
        if path.name != "manifest.json":
            (copy / path.name).symlink_to(path)
    (copy / "manifest.json").write_text(json.dumps(manifest | {"frame_interval_s": None}))
    result = cli("predict", "--bundle", copy, video, "--faces", "none")
    assert result.exit_code == 0, result.output
    assert "0.167 s apart" in result.output.replace("\n", " ")
    assert "0.00–2.50" in result.output
    # It is said once, and not where no video could be opened.
    assert result.output.count("s apart") == 1
    assert cli("predict", "--bundle", copy, video, video, "--faces", "none").output.count("s apart") == 1
    assert "apart" not in cli("predict", "--bundle", copy, tmp_path / "missing.mp4").output
    assert "apart" not in cli("predict", "--bundle", copy, video, "--faces", "none", "--frame-interval-s", "99").output
    given = cli("predict", "--bundle", copy, video, "--faces", "none", "--frame-interval-s", "0.2")
    assert "apart" not in given.output
