import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import clips_of, write_frames

from dfer_deploy.clips.annotations import read_annotations
from dfer_deploy.clips.dataset import LabelledClips
from dfer_deploy.errors import ClipError


def _list(folder: Path, text: str) -> Path:
    path = folder / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_are_folder_count_and_class(tmp_path: Path) -> None:
    found = read_annotations(_list(tmp_path, "a/001 64 2\n\nname with spaces 7 0\r\n"), 3)
    assert [(a.name, a.path, a.listed_frames, a.label) for a in found] == [
        ("a/001", tmp_path / "a" / "001", 64, 2),
        ("name with spaces", tmp_path / "name with spaces", 7, 0),
    ]


@pytest.mark.parametrize("root", ["{tmp}/mine", "/data/zengqun=/{tmp}/mine", "/data/zengqun/DFEW={tmp}/mine/DFEW"])
def test_the_authors_prefix_is_replaced(tmp_path: Path, root: str) -> None:
    (tmp_path / "mine" / "DFEW" / "clips" / "00001").mkdir(parents=True)
    text = "/data/zengqun/DFEW/clips/00001 64 2\n/data/zengqun/DFEW/clips/00002 64 2\n"
    found = read_annotations(_list(tmp_path, text), 3, root.format(tmp=tmp_path))
    assert [a.path.resolve() for a in found] == [tmp_path / "mine" / "DFEW" / "clips" / n for n in ("00001", "00002")]
    assert found[0].name == "/data/zengqun/DFEW/clips/00001"


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "fold=1" / "a").mkdir(parents=True)
    (found,) = read_annotations(_list(tmp_path, "/authors/a 16 1\n"), 3, str(tmp_path / "fold=1"))
    assert found.path == tmp_path / "fold=1" / "a"


@pytest.mark.parametrize(
    ("text", "root", "message"),
    [
        ("", None, "is empty"),
        ("a 16\n", None, r"line 1 is 'a 16', expected: <folder or video> <frames> <class index>"),
        ("a 16 1\nb sixteen 1\n", None, "line 2 is 'b sixteen 1'"),
        ("a 16 7\n", None, "line 1 has the class index 7, the model has the classes 0–2"),
        ("a 16 -1\n", None, "class index -1"),
        ("/x/a 16 1\n", "nowhere", "'nowhere', which is not a folder"),
        ("/x/a 16 1\n", "{tmp}", "holds no part of '/x/a'"),
        ("/x/a 16 1\n", "/y={tmp}", "no path of .* starts with '/y'"),
    ],
)
def test_mistakes_in_lists_are_one_sentence(tmp_path: Path, text: str, root: str | None, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        read_annotations(_list(tmp_path, text), 3, root and root.format(tmp=tmp_path))


def test_a_missing_or_binary_list_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="cannot be read"):
        read_annotations(tmp_path / "none.txt", 3)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClipError, match="is not a text file"):
        read_annotations(tmp_path / "b.txt", 3)


def test_the_folder_decides_and_one_warning_says_so(tmp_path: Path, capsys: Any) -> None:
    for name, frames in (("a", 5), ("b", 20)):
        write_frames(tmp_path / name, clips_of(1, frames=frames)[0])
    clips = LabelledClips.from_list(_list(tmp_path, "a 9 0\nb 33 1\n"), 3, 32)
    assert [clip.shape for _, clip in clips] == [(16, 32, 32, 3)] * 2
    warning = capsys.readouterr().err
    assert warning.count("warning:") == 1
    assert "2 of 2 clips have another number of frames" in warning
    assert "first: a has 5, the list says 9" in warning


def test_unreadable_clips_are_listed_and_the_rest_is_served_in_order(tmp_path: Path, capsys: Any) -> None:
    for name in "abcd":
        write_frames(tmp_path / name, clips_of(1, seed=ord(name))[0])
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "c" / "00003.png").write_bytes(b"")
    clips = LabelledClips.from_list(_list(tmp_path, "a 16 0\nb 16 1\nc 16 2\nd 16 0\n"), 3, 32)
    assert [annotation.name for annotation, _ in clips] == ["a", "d"]
    assert set(clips.unreadable) == {"b", "c"}
    with pytest.raises(ClipError, match=r"2 of 4 clips could not be read, at most 5% is accepted; the first: "):
        clips.require_readable()
    clips.annotations *= 10
    clips.require_readable()
    clips.warn_about_unreadable()
    warning = capsys.readouterr().err
    assert "2 of 40 clips could not be read" in warning
    assert "does not exist" in warning
    assert "00003.png" in warning
