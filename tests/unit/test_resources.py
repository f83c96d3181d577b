import os
import subprocess
import sys
from pathlib import Path

from dfer_deploy.bundle import Bundle
from dfer_deploy.resources import descendants, measured_resources


def test_a_file_with_two_names_counts_once_and_nothing_is_measured_without_a_server(bundle: Bundle) -> None:
    found = measured_resources(bundle, served_here=False)
    files = {path.stat().st_ino: path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()}
    assert found.size_mb == sum(files.values()) / 1e6
    assert found.size_mb < sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()) / 1e6
    assert found.memory_mb is None


def test_the_memory_of_children_of_children_counts(bundle: Bundle) -> None:
    grandchild = "block = b'x' * 50_000_000; print('ready', flush=True); input()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.pid in descendants(os.getpid())
        memory = measured_resources(bundle, served_here=True).memory_mb
        process.communicate("\n")
    assert memory is not None
    assert 50 < memory < 200


def test_a_process_may_be_called_anything(tmp_path: Path) -> None:
    for pid, parent in ((5, 1), (6, 5), (7, 6), (8, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) S 1 (b) S {parent} 0 0")
    (tmp_path / "9").mkdir()
    assert sorted(descendants(5, tmp_path)) == [6, 7]
