#!/usr/bin/env python3
"""Installs the Python module of a Triton image's TensorRT in the image, to build engines that this image can serve.

The script runs inside the image, with its Python and the standard library only. The module must have exactly the
version of the image's libnvinfer, because a plan runs with the TensorRT that built it. Only the module and its bindings
are installed; the libraries, including libnvonnxparser and libnvinfer_plugin, remain those of the image.

Sources: TensorRT's NvInferRuntime.h, getInferLibMajorVersion and its like; NVIDIA's packages tensorrt-cu13 (the
module) and tensorrt-cu13-bindings, which take the libraries that the loader finds where no package brings them.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

BACKEND = Path("/opt/tritonserver/backends/tensorrt/libtriton_tensorrt.so")
PARTS = ("Major", "Minor", "Patch", "Build")
SHOW_VERSION = "import tensorrt; print(tensorrt.__version__)"


def main() -> int:
    """Install the module if it is missing. The exit code is 1 if that fails, and a message states the reason."""
    parser = argparse.ArgumentParser(description="Install the Python module of this image's TensorRT.")
    parser.add_argument(
        "--library", dest="path", help="libnvinfer (default: the one that Triton's TensorRT backend loads)"
    )
    path = parser.parse_args().path
    try:
        version = version_of_library(path or backend_library(BACKEND))
        found = module_version()
        if found is None:
            # The star admits a package of the same version that was only repacked, such as 10.14.1.48.post1.
            name = f"tensorrt-cu{cuda_major(os.environ.get('CUDA_VERSION', ''))}"
            packages = [f"{name}-bindings=={version}.*", f"{name}=={version}.*"]
            print(f"the image has TensorRT {version} without its Python module; installing {packages}", flush=True)
            install(packages)
            found = module_version()
        if found is None or not is_same(found, version):
            reason = found or f"not importable ({import_error()})"
            raise LookupError(f"the image's TensorRT is {version}, its Python module is {reason}")
    except (OSError, LookupError) as error:
        print(f"{error}; use the image nvcr.io/nvidia/tensorrt of the same release to build instead", file=sys.stderr)
        return 1
    print(f"TensorRT {version} and its Python module {found}")
    return 0


def backend_library(backend: Path) -> str:
    """Find the name of the libnvinfer that a backend loads, for example ``libnvinfer.so.11``.

    Raises:
        OSError: the backend cannot be read.
        LookupError: the backend does not load libnvinfer.
    """
    wanted = re.search(rb"libnvinfer\.so\.\d+", backend.read_bytes())
    if wanted is None:
        raise LookupError(f"{backend} asks for no libnvinfer")
    return wanted.group().decode()


def version_of_library(path: str) -> str:
    """Read the full version of a libnvinfer, for example ``11.1.0.106``.

    Raises:
        OSError: the library cannot be loaded.
        LookupError: the library does not report its version.
    """
    library = ctypes.CDLL(path)
    try:
        return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in PARTS)
    except AttributeError as error:
        raise LookupError(f"{path} does not tell its version ({error})") from error


def module_version() -> str | None:
    """Read the version of the module ``tensorrt``; None if it cannot be imported.

    The import runs in a separate process, because a failed import is not tried again, and a module of another version
    may crash.
    """
    done = subprocess.run([sys.executable, "-c", SHOW_VERSION], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def cuda_major(version: str) -> str:
    """Extract the major version of CUDA, which the package's name contains, from the image's variable CUDA_VERSION.

    Raises:
        LookupError: the variable is not a version.
    """
    major = version.partition(".")[0]
    if not major.isdecimal():
        raise LookupError(f"the variable CUDA_VERSION is {version!r}, expected for example 13.0.2")
    return major


def import_error() -> str:
    """Read the last line of Python's error when it imports the module."""
    done = subprocess.run([sys.executable, "-c", SHOW_VERSION], capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["without a word"])[-1]


def install(packages: list[str]) -> None:
    """Install packages without their dependencies.

    Raises:
        LookupError: pip failed.
    """
    # Ubuntu marks its Python as managed by apt, which does not matter in an image for this purpose only.
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-cache-dir", "--break-system-packages"]
    if subprocess.run([*command, *packages], check=False).returncode != 0:
        raise LookupError(f"pip could not install {' and '.join(packages)}, its message is above")


def is_same(module: str, library: str) -> bool:
    """Check whether a module and a library have the same version, apart from a suffix such as ``.post1``."""
    return module.split(".post")[0] == library


if __name__ == "__main__":
    sys.exit(main())
