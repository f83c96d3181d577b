import errno
from pathlib import Path

import pytest

from dfer_deploy.errors import WriteError
from dfer_deploy.files import (
    atomic_file,
    check_outputs,
    refuse_to_replace_input,
    refuse_to_write_into_bundle,
    temporary_folder,
    write_json,
)
from dfer_deploy.machine.folders import atomic_folder


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError, match="stop"), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), atomic_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_text("half")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_with_force_only(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    for text in ("one", "two"):
        with atomic_folder(folder, force=text == "two") as temporary:
            (temporary / text).write_text(text)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(WriteError, match="exists already"), atomic_folder(folder):
        raise AssertionError("must not be entered")


def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "old").write_text("old")
    original = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(self))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    monkeypatch.setattr("dfer_deploy.machine.folders._exchanged", lambda one, other: False)
    with pytest.raises(WriteError, match="Operation not permitted"), atomic_folder(folder, force=True):
        pass
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_link_is_replaced_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link", force=True) as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new").read_text() == "new"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot write .*No space left"), atomic_folder(tmp_path / "b"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        write_json(tmp_path / "file" / "x.json", {})


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(WriteError, match="/dev/null is not a regular file"):
        write_json(Path("/dev/null"), {})
    assert Path("/dev/null").is_char_device()


def test_another_files_error_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "x"):
        Path("/nonexistent/input").read_text()


def test_an_output_is_no_input_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    (tmp_path / "soft").symlink_to(video)
    (tmp_path / "hard").hardlink_to(video)
    monkeypatch.chdir(tmp_path)
    for name in ("v.mp4", str(video), "sub/../v.mp4", "soft", "hard"):
        with pytest.raises(WriteError, match="would replace the input"):
            refuse_to_replace_input(Path(name), [Path("sub"), video])
    refuse_to_replace_input(Path("other"), [video, Path("/no/such")])
    refuse_to_replace_input(Path("sub/new"), [video, Path("sub")])


def test_a_bundle_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "onnx").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    for name in ("bundle/manifest.json", "link/new.csv", "bundle/onnx/../x", "other/../bundle/x"):
        with pytest.raises(WriteError, match="would change the bundle"):
            refuse_to_write_into_bundle(tmp_path / name, tmp_path / "link")
    refuse_to_write_into_bundle(tmp_path / "bundle.json", tmp_path / "bundle")


def test_outputs_that_would_lose_something_or_fail_are_refused_before_the_work(tmp_path: Path) -> None:
    weights, old = tmp_path / "a.pt", tmp_path / "old.json"
    for path in (weights, old):
        path.write_text("kept")
    check_outputs({"--json": old, "--report": tmp_path / "new.html", "--none": None}, [weights, None])
    refused = {
        f"{weights} would replace the input": {"--json": old, "--report": weights},
        f"--json and --report both write {tmp_path}": {"--json": old, "--report": tmp_path / "sub" / ".." / "old.json"},
        "is not a regular file": {"--json": tmp_path},
        "cannot write .*: No such file or directory": {"--json": tmp_path / "no" / "v.json"},
    }
    (tmp_path / "sub").mkdir()
    for message, outputs in refused.items():
        with pytest.raises(WriteError, match=message):
            check_outputs(outputs, [weights, None])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "old.json", "sub"]
    assert (weights.read_text(), old.read_text()) == ("kept", "kept")


def test_no_or_a_full_temporary_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(WriteError, match=r"No space left on device; .*free some space"),
        temporary_folder("a-") as folder,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "file"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(WriteError, match="name one in the variable TMPDIR"), temporary_folder("a-"):
        pass
