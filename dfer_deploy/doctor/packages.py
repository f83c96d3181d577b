"""Check Python and the optional packages, each imported in a separate process."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, field
from typing import Any

from dfer_deploy import __version__
from dfer_deploy.bundles.compatibility import version_numbers
from dfer_deploy.bundles.engine_records import OLDEST_TENSORRT
from dfer_deploy.doctor.child import ProbeError, answer_of_python
from dfer_deploy.doctor.finding import Finding
from dfer_deploy.errors import install_command

SUPPORTED_PYTHON = ((3, 10), (3, 13))
"""Oldest and newest supported version of Python."""

_IMPORT = """
import importlib, json
name = sys.argv[1]
try:
    module = importlib.import_module(name)
except ModuleNotFoundError as error:
    if error.name != name:
        raise
    module = None
# A folder of that name somewhere on the path is imported as a namespace: a module without anything in it.
version = getattr(module, "__version__", None)
details = {}
"""

_ANSWER = """
print()
print(json.dumps({"version": version and str(version), "details": details}))
"""

_TORCH = """
if version:
    details = {"cuda": module.version.cuda, "cuda_available": module.cuda.is_available()}
"""

IDENTITY_ONNX = (
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)
"""An ONNX model in hexadecimal: one Identity operator, from ``x`` to ``y``, float32 [1]."""

_ONNXRUNTIME = (
    f"IDENTITY_ONNX = {IDENTITY_ONNX!r}"
    + """
from importlib import metadata
installed = []
for distribution in ("onnxruntime", "onnxruntime-gpu"):
    try:
        installed.append(f"{distribution} {metadata.version(distribution)}")
    except metadata.PackageNotFoundError:
        pass
details = {"installed": installed, "providers": [], "cuda": ""}
if version:
    details["providers"] = module.get_available_providers()
    if "CUDAExecutionProvider" in details["providers"]:
        if hasattr(module, "preload_dlls"):
            module.preload_dlls()
        # The providers above are those compiled in; only a session shows whether their libraries load.
        session = module.InferenceSession(bytes.fromhex(IDENTITY_ONNX), providers=["CUDAExecutionProvider"])
        details["cuda"] = "loads" if "CUDAExecutionProvider" in session.get_providers() else "does not load"
"""
)

_DETAILS = {"torch": _TORCH, "onnxruntime": _ONNXRUNTIME}

PACKAGES = ("torch", "open_clip", "onnx", "onnxscript", "onnxruntime", "tensorrt")
"""Optional packages to import. open_clip imports torchvision."""


@dataclass(frozen=True)
class Package:
    """The state of an optional package.

    Attributes:
        version: installed version; None if it is not installed or cannot be imported.
        details: for torch: ``cuda``, the version with which it was built or None, and ``cuda_available``. For
            onnxruntime: ``installed``, the distributions with their versions; ``providers``, the compiled-in ones; and
            ``cuda``: ``loads``, ``does not load`` or empty if it is not compiled in.
        problem: why an installed package cannot be imported; empty if it can.
    """

    version: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def probe_package(name: str) -> Package:
    """Import a package in a separate process."""
    try:
        answer = answer_of_python(_IMPORT + _DETAILS.get(name, "") + _ANSWER, name)
    except ProbeError as error:
        return Package(problem=str(error))
    return Package(answer["version"], answer["details"])


def usable_tensorrt(packages: dict[str, Package]) -> str | None:
    """Return the version of a TensorRT that can be imported and is new enough; None if there is none."""
    version = packages["tensorrt"].version
    return version if version and version_numbers(version)[:2] >= OLDEST_TENSORRT else None


def package_findings(packages: dict[str, Package], *, gpu: bool) -> list[Finding]:
    """Return the findings about the installed packages.

    Args:
        packages: all packages of ``PACKAGES``.
        gpu: whether CUDA has a GPU here.
    """
    extra = install_command("gpu" if gpu else "cpu")
    return [
        _python(),
        _torch(packages["torch"], extra, gpu=gpu),
        *(_plain(name, packages[name], extra) for name in ("open_clip", "onnx", "onnxscript")),
        _onnxruntime(packages["onnxruntime"], gpu=gpu),
        _tensorrt(packages["tensorrt"], gpu=gpu),
    ]


def _python() -> Finding:
    found = f"{platform.python_version()}, dfer-deploy {__version__}, {platform.system()} {platform.machine()}"
    oldest, newest = SUPPORTED_PYTHON
    if oldest <= sys.version_info[:2] <= newest:
        return Finding("Python", "ok", found)
    expected = f"{'.'.join(map(str, oldest))} to {'.'.join(map(str, newest))}"
    return Finding("Python", "problem", found, f"Python {expected} is tested; make an environment with one of them")


def _plain(name: str, package: Package, extra: str) -> Finding:
    if package.problem:
        return Finding(name, "problem", package.problem, "install it anew", f"{extra} --force-reinstall")
    if package.version is None:
        return Finding(name, "missing", "not installed", "for inspect, train, export and verify --checkpoint", extra)
    return Finding(name, "ok", package.version)


def _torch(package: Package, extra: str, *, gpu: bool) -> Finding:
    if package.version is None:
        return _plain("torch", package, extra)
    cuda = package.details["cuda"]
    if package.details["cuda_available"]:
        return Finding("torch", "ok", f"{package.version}, with CUDA {cuda}")
    if not gpu:
        return Finding("torch", "ok", f"{package.version}, on the CPU" + (f" (built with CUDA {cuda})" if cuda else ""))
    if cuda is None:
        advice = "install PyTorch's CUDA build, see https://pytorch.org/get-started/locally/"
        return Finding("torch", "problem", f"{package.version}, built without CUDA", advice)
    advice = f"use a driver that knows CUDA {cuda}, or a PyTorch that was built with an older CUDA"
    return Finding("torch", "problem", f"{package.version}, whose CUDA {cuda} does not start on this GPU", advice)


def _onnxruntime(package: Package, *, gpu: bool) -> Finding:
    extra = "gpu" if gpu else "runtime"
    right = "onnxruntime-gpu" if gpu else "onnxruntime"
    if package.problem or (package.version is None and package.details.get("installed")):
        reason = package.problem or "its folder is empty, as after removing one of onnxruntime and onnxruntime-gpu"
        command = f"pip install --force-reinstall --no-deps {right}"
        return Finding("onnxruntime", "problem", reason, "install it anew", command)
    if package.version is None:
        advice = "for predict --bundle, verify and bench"
        return Finding("onnxruntime", "missing", "not installed", advice, install_command(extra))
    installed, providers = package.details["installed"], package.details["providers"]
    if len(installed) > 1:
        advice = "they overwrite each other's files; keep one"
        command = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {right}"
        return Finding("onnxruntime", "problem", f"{' and '.join(installed)} are both installed", advice, command)
    found = f"{installed[0].split(' ')[0] if installed else 'onnxruntime'} {package.version}"
    names = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    if not gpu:
        return Finding("onnxruntime", "ok", f"{found} (providers: {names})")
    if package.details["cuda"] == "loads":
        return Finding("onnxruntime", "ok", f"{found} (providers: {names}), CUDA loads")
    if not package.details["cuda"]:
        advice, command = "it computes on the CPU", "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        return Finding("onnxruntime", "problem", f"{found} (providers: {names}), built without CUDA", advice, command)
    advice = "its CUDA or cuDNN libraries are missing or of another version, so it computes on the CPU"
    command = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return Finding("onnxruntime", "problem", f"{found}, whose CUDA provider does not load", advice, command)


def _tensorrt(package: Package, *, gpu: bool) -> Finding:
    oldest = ".".join(map(str, OLDEST_TENSORRT))
    if package.version is None and not gpu:
        return Finding("tensorrt", "not needed", package.problem or "not installed, and no GPU to use it")
    if package.version is None:
        advice = "for building engines here; inside the image that serves it is installed for itself"
        command = install_command("gpu")
        if package.problem:
            return Finding("tensorrt", "problem", package.problem, advice, command)
        return Finding("tensorrt", "missing", "not installed", advice, command)
    if version_numbers(package.version)[:2] < OLDEST_TENSORRT:
        command = f"pip install --upgrade 'tensorrt>={oldest}'"
        return Finding("tensorrt", "problem", f"{package.version}, expected {oldest} or later", "upgrade it", command)
    return Finding("tensorrt", "ok", package.version)
