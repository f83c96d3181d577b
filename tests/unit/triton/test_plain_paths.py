"""Links with plain names, for paths that a shell would split or execute."""

import os
from pathlib import Path

import pytest

from dfer_deploy.errors import ServerError
from dfer_deploy.triton import guard, plain_paths
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.plain_paths import PlainLinks, check_places, is_plain


@pytest.mark.parametrize("name", ["sp ace", "bündle", "a'b", "a;b", "a:b", "a$(true)b", "a\nb", "-~*", ""])
def test_only_what_every_shell_takes_as_it_is_counts_as_plain(name: str) -> None:
    assert is_plain(Path("/srv/dfer-1.0_b+c"))
    assert is_plain(Path("/") / name) is (name == "")


def test_a_plain_path_is_used_as_it_is(tmp_path: Path) -> None:
    links = PlainLinks("dfer_deploy_test_plain_")
    assert links.to(Path("/srv/bundle"), "x") == Path("/srv/bundle")
    assert not list(Path("/tmp").glob("dfer_deploy_test_plain_*"))


def test_the_guard_removes_the_links_and_not_what_they_lead_to(tmp_path: Path) -> None:
    mark = f"dfer_deploy_test_{os.getpid()}_"
    folder = tmp_path / "sp ace"
    folder.mkdir()
    (folder / "file").touch()
    link = PlainLinks(mark).to(folder, "model_repository")
    assert is_plain(link)
    assert link.resolve() == folder.resolve()
    assert link.parent.stat().st_mode & 0o777 == 0o700
    guard.remove_leftovers(mark, set())
    assert not link.parent.exists()
    assert (folder / "file").exists()


def test_a_machine_without_a_place_for_links_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(plain_paths, "link_places", lambda: [tmp_path / "file", tmp_path / "sp ace"])
    with pytest.raises(ServerError, match=r"cannot run from '/srv/a b'.*Not a directory.*use a path of letters"):
        PlainLinks("mark").to(Path("/srv/a b"), "x")


def test_all_of_the_environment_is_used_through_the_link(tmp_path: Path) -> None:
    root = tmp_path / "my cache"
    made = TritonEnvironment(
        root=root,
        python=root / "bin" / "python3",
        tritonserver=root / "lib" / "tritonserver",
        backend_directory=root / "triton" / "backends",
        libraries=(root / "triton" / "lib", root / "libs"),
        perf_analyzer=root / "bin" / "perf_analyzer",
    )
    links = PlainLinks(f"dfer_deploy_test_{os.getpid()}_")
    try:
        plain, repository = made.at_plain_paths(tmp_path / "a b", links)
        assert repository.resolve() == (tmp_path / "a b").resolve()
        variables = plain.process_environment()
        shown = [*variables["LD_LIBRARY_PATH"].split(":"), variables["PATH"].split(":")[0]]
        places = [plain.root, plain.python, plain.tritonserver, plain.backend_directory, plain.perf_analyzer]
        assert all(is_plain(path) for path in [*map(Path, shown), *places])
        assert plain.backend_directory.resolve() == (root / "triton" / "backends").resolve()
    finally:
        links.remove()


def test_a_full_or_read_only_folder_of_the_backend_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(plain_paths, "BACKEND_FOLDERS", tmp_path / "file")
    with pytest.raises(ServerError, match=r"file cannot be written \(Not a directory\).*make it writable"):
        check_places(tmp_path)
