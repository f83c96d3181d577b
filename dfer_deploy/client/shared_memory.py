"""Frames that a server on the same machine reads where the client wrote them (Triton's system shared memory).

The regions are POSIX shared memory. Their names are removed as soon as the server has mapped them, so that nothing is
left of them even if the client is killed. The servers that ``dfer-deploy serve`` starts refuse them: whoever may
register regions may also read those of others.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dfer_deploy.specs import require

SharedMemory = Literal["auto", "never"]
"""``auto``: where the server is this machine's and allows it."""

_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
_PREFIX = "dfer_deploy_client_"


def is_wanted(shared_memory: SharedMemory) -> bool:
    """Whether shared memory is to be tried.

    Raises:
        DferDeployError: it is neither ``"auto"`` nor ``"never"``.
    """
    require(shared_memory in ("auto", "never"), f"shared_memory is {shared_memory!r}, expected 'auto' or 'never'")
    return shared_memory == "auto"


class Region:
    """A piece of shared memory.

    Attributes:
        name: under which the server knows it.
        key: the POSIX name.
        size: in bytes.
        registered: the server has mapped it.
    """

    def __init__(self, size: int) -> None:
        """Raises:
        OSError: there is no shared memory, or not enough of it.
        """
        self.name = f"{_PREFIX}{os.getpid()}_{secrets.token_hex(8)}"
        self.key, self.size, self.registered = f"/{self.name}", size, False
        path = _FOLDER / self.name
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Without the reservation a full /dev/shm would end the process when it writes.
            os.posix_fallocate(handle, 0, size)
            self._memory = mmap.mmap(handle, size)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(handle)

    def fill(self, array: npt.NDArray[Any]) -> None:
        """Writes the array's bytes to the beginning."""
        view = np.frombuffer(self._memory, array.dtype, array.size).reshape(array.shape)
        view[...] = array

    def remove_name(self) -> None:
        """The memory stays as long as somebody has mapped it."""
        (_FOLDER / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        self.remove_name()
        self._memory.close()


class Regions:
    """The regions of one client; every request in flight has one of its own. For use by several threads."""

    def __init__(self, *, wanted: bool) -> None:
        self._usable = wanted and _FOLDER.is_dir()
        self._free: list[Region] = []
        self._dropped: list[Region] = []
        self._lock = threading.Lock()

    @property
    def usable(self) -> bool:
        """Whether shared memory is to be tried."""
        return self._usable

    def take(self, size: int) -> Region | None:
        """A region of at least ``size`` bytes, or None where there is no memory for it."""
        with self._lock:
            for index, region in enumerate(self._free):
                if region.size >= size:
                    return self._free.pop(index)
        try:
            return Region(size)
        except OSError:
            return None

    def give_back(self, region: Region) -> None:
        with self._lock:
            self._free.append(region)

    def give_up(self) -> None:
        """The server allows no shared memory."""
        self._usable = False
        self.forget()

    def drop(self, region: Region) -> None:
        """Closes a region that is not used again; the server may have mapped it."""
        region.close()
        with self._lock:
            self._dropped.append(region)

    def forget(self) -> None:
        """Drops the regions that nobody uses."""
        with self._lock:
            regions, self._free = self._free, []
        for region in regions:
            self.drop(region)

    def dropped(self) -> list[Region]:
        """What was dropped since the last call, for the server to forget."""
        with self._lock:
            regions, self._dropped = self._dropped, []
        return regions
