from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dfer_deploy.client.shared_memory import Region, Regions


def names() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"dfer_deploy_client_{os.getpid()}_*")}


def test_another_process_reads_what_was_written_and_no_name_is_left() -> None:
    region = Region(64)
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    region.fill(array[:, ::-1])
    assert (Path("/dev/shm") / region.key[1:]).read_bytes()[:24] == array[:, ::-1].tobytes()
    assert names() == {region.name}
    region.remove_name()
    assert names() == set()
    region.fill(array)
    region.close()


def test_regions_are_used_again_if_they_are_large_enough() -> None:
    regions = Regions(wanted=True)
    small = regions.take(10)
    assert small is not None
    regions.give_back(small)
    large = regions.take(100)
    assert large is not small
    assert regions.take(5) is small
    assert large is not None
    regions.give_back(large)
    regions.give_back(small)
    large.registered = True
    regions.forget()
    assert names() == set()
    assert set(map(id, regions.dropped())) == {id(large), id(small)}
    assert regions.dropped() == []


def test_a_full_shared_memory_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert Regions(wanted=True).take(10) is None
    assert names() == set()


def test_not_wanted_and_given_up() -> None:
    assert not Regions(wanted=False).usable
    regions = Regions(wanted=True)
    assert regions.usable
    regions.give_up()
    assert not regions.usable
