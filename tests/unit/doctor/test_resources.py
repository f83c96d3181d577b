"""Memory, disk and ports on machines that say little about themselves."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dfer_deploy.doctor import resources
from dfer_deploy.doctor.finding import Finding
from dfer_deploy.doctor.resources import MachineResources, gigabytes, probe_resources, resource_findings
from dfer_deploy.triton.cache import CACHE_VARIABLE

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\n"


def probed(folder: Path, meminfo: str | None = MEMINFO, **cgroup: str) -> MachineResources:
    for name, text in {"proc/meminfo": meminfo, **{f"cgroup/{name}": text for name, text in cgroup.items()}}.items():
        path = folder / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
    return probe_resources(proc=folder / "proc", cgroup=folder / "cgroup")


def lines(found: MachineResources) -> dict[str, Finding]:
    return {line.what: line for line in resource_findings(found)}


def test_this_machine() -> None:
    found = probe_resources()
    assert found.memory_bytes is not None
    assert 0 < (found.available_bytes or 0) <= found.memory_bytes
    assert lines(found)["disk, here"].state == "ok"


@pytest.mark.parametrize(
    ("cgroup", "total", "available"),
    [
        ({}, 16_384_000_000, 8_192_000_000),
        ({"memory_max": "max\n", "memory_current": "5"}, 16_384_000_000, 8_192_000_000),
        ({"memory_max": "4000000000\n", "memory_current": "1000000000\n"}, 4_000_000_000, 3_000_000_000),
        ({"memory_max": "4000000000", "memory_current": "5000000000"}, 4_000_000_000, 0),
        (
            {"memory__memory_limit_in_bytes": "2000000000", "memory__memory_usage_in_bytes": "500000000"},
            2_000_000_000,
            1_500_000_000,
        ),
        (
            {"memory__memory_limit_in_bytes": str(2**63 - 4096), "memory__memory_usage_in_bytes": "5"},
            16_384_000_000,
            8_192_000_000,
        ),
        ({"memory_max": "nonsense", "memory_current": ""}, 16_384_000_000, 8_192_000_000),
    ],
)
def test_a_containers_limit_counts_where_it_is_less(
    tmp_path: Path, cgroup: dict[str, str], total: int, available: int
) -> None:
    found = probed(tmp_path, **cgroup)
    assert (found.memory_bytes, found.available_bytes) == (total, available)


@pytest.mark.parametrize("meminfo", [None, "", "MemTotal\nMemAvailable: kB", "MemTotal: many kB\n\0\0:::\n"])
def test_no_meminfo_is_a_line(tmp_path: Path, meminfo: str | None) -> None:
    found = probed(tmp_path, meminfo)
    assert found.memory_bytes is None
    assert lines(found)["memory"].state == "problem"


def test_no_limit_is_no_memory_either(tmp_path: Path) -> None:
    limits = {"memory__memory_limit_in_bytes": str(2**63 - 4096), "memory__memory_usage_in_bytes": "5"}
    assert probed(tmp_path, None, **limits).memory_bytes is None
    limits = {"memory_max": "4000000000", "memory_current": "1000000000"}
    assert probed(tmp_path, None, **limits).available_bytes == 3_000_000_000


def test_a_taken_port_is_told_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setitem(resources.PORTS, "gRPC", listener.getsockname()[1])
        line = lines(probed(tmp_path))["ports"]
    assert line.state == "problem"
    assert "gRPC port" in line.found
    assert "--grpc-port 0" in line.advice


def test_the_cache_folder_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "not" / "yet"))
    assert probed(tmp_path).cache == (str(tmp_path / "not" / "yet"), pytest.approx(_free(tmp_path), rel=0.1))
    assert not (tmp_path / "not").exists()


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def test_little_room_is_a_problem() -> None:
    small = MachineResources(8 << 30, 4 << 30, 1 << 20, (".", 5 << 30), ("/cache", 100 << 20))
    found = lines(small)
    assert [found[what].state for what in ("memory", "shared memory", "disk, cache")] == ["ok", "problem", "problem"]
    assert "105 MB free in /cache" in found["disk, cache"].found
    nothing = lines(MachineResources())
    assert {nothing[what].state for what in ("memory", "shared memory", "disk, here", "disk, cache")} == {"problem"}


def test_gigabytes() -> None:
    assert [gigabytes(count) for count in (640_000_000, 3_200_000_000)] == ["640 MB", "3.2 GB"]
