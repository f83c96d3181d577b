"""The GPUs that NVIDIA's driver offers. Needs only the standard library.

A part of ``build_engines.py`` in a bundle; see ``export.standalone``.

Source: CUDA driver API, "Initialization", "Version Management", "Device Management"; every call returns 0 for success.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
"""Numbers of a device's attributes (CUdevice_attribute)."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA can use; ``compute_capability`` is for example ``9.0``."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class CudaDriver:
    """What the driver's library says.

    Attributes:
        cuda: the highest CUDA that the driver supports, for example ``13.0``; None where unknown.
        gpus: what CUDA can use, in its order; none where it does not start.
        absent: why there is no ``libcuda.so.1``, or nothing.
        error_code: the CUresult with which CUDA refused to start; 0 where it did not refuse.
        error: what the driver says about that code, or nothing.
    """

    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    absent: str = ""
    error_code: int = 0
    error: str = ""


def ask_cuda_driver() -> CudaDriver:
    """Ask ``libcuda.so.1``, which every machine and container with a GPU has.

    A broken library may take the process with it: ``doctor`` asks in a process of its own.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return CudaDriver(absent=str(error))
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    supported = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else None
    failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if failed:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(failed, ctypes.byref(text))
        return CudaDriver(supported, (), "", failed, (text.value or b"unknown error").decode("utf-8", "replace"))
    return CudaDriver(supported, tuple(_gpu(cuda, index) for index in range(count.value)))


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode("utf-8", "replace"), f"{major.value}.{minor.value}", memory.value)
