"""Cores and memory that a container allows."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_deploy.machine import cgroups
from dfer_deploy.machine.cgroups import memory_limits, usable_cores

Write = Callable[..., None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files of cgroups by their paths, and the groups of this process."""
    for name in ("_cpu_quotas", "memory_limits"):
        monkeypatch.setattr(getattr(cgroups, name), "__defaults__", (tmp_path, tmp_path / "own"))

    def write(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_a_process_that_is_bound_to_cores_uses_those() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_systems_without_affinity(monkeypatch: pytest.MonkeyPatch, groups: Write) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu_DOT_max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu_DOT_max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu_DOT_max": "5000 100000\n"}, 1),
        ("0::/a/b\n", {"a__cpu_DOT_max": "300000 100000", "a__b__cpu_DOT_max": "max 100000"}, 3),
        ("0::/not/visible\n", {"cpu_DOT_max": "400000 100000"}, 4),
        ("0::/../../escaped\n", {"cpu_DOT_max": "400000 100000"}, 4),
        ("4:cpu,cpuacct:/x\n", {"cpu__cpu_DOT_cfs_quota_us": "200000", "cpu__cpu_DOT_cfs_period_us": "100000"}, 2),
        ("4:cpu:/\n", {"cpu__cpu_DOT_cfs_quota_us": "-1", "cpu__cpu_DOT_cfs_period_us": "100000"}, 64),
        ("4:memory:/\n", {"memory__cpu_DOT_max": "100000 100000"}, 64),
        ("nonsense", {"cpu_DOT_max": "nonsense"}, 64),
        ("0::/\n", {"cpu_DOT_max": "100000 0"}, 64),
    ],
)
def test_a_quota_counts_as_cores(
    monkeypatch: pytest.MonkeyPatch, groups: Write, own: str, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    groups(own, **files)
    assert usable_cores() == cores


def test_limits_of_memory_of_all_groups_are_found(groups: Write) -> None:
    groups("0::/a\n", a__memory_DOT_max="max", a__memory_DOT_current="1", memory_DOT_max="9", memory_DOT_current="4")
    assert memory_limits(*cgroups.memory_limits.__defaults__) == [(9, 4)]
