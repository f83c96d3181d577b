"""Find NVIDIA GPUs with the driver's own library and with nvidia-smi."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy import hardware
from dfer_deploy.doctor.child import PROGRAM_TIMEOUT_S, ProbeError, answer_of_python, output_of, shortened
from dfer_deploy.doctor.finding import Finding
from dfer_deploy.hardware import Gpu
from dfer_deploy.plain_data import spec_from_dict

OLDEST_CAPABILITY = (7, 5)
"""Smallest compute capability that TensorRT 10.12 to 11.4 supports (support matrix): Turing."""

_ASK_DRIVER = """
import dataclasses, json, runpy
found = runpy.run_path(sys.argv[1])["ask_cuda_driver"]()
print()
print(json.dumps(dataclasses.asdict(found)))
"""
"""Runs the module as a file, so that the other process does not need to find this package."""

_NO_DEVICE = 100
_ADVICE = {
    34: "libcuda.so.1 is the stub for linking; take its folder off LD_LIBRARY_PATH",
    802: "start the fabric manager that GPUs joined by NVSwitch need: systemctl start nvidia-fabricmanager",
    803: "the driver was updated while it ran; reboot",
    804: "a CUDA compatibility package does not fit this GPU; take its folder off LD_LIBRARY_PATH",
}
"""Advice for a CUresult (CUDA driver API, "Data types used by CUDA driver")."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs and drivers of a machine.

    Attributes:
        devices: devices that CUDA can use, in CUDA's order.
        cuda: highest version of CUDA that the driver supports, for example ``13.0``; None if unknown.
        driver: version of the driver; None if unknown.
        absent: why ``libcuda.so.1`` is absent; empty if it is there.
        error_code: CUresult with which CUDA refused to start; 0 if it started.
        listed: names of the GPUs that nvidia-smi lists.
        smi_problem: why nvidia-smi did not answer; empty if it did; None if it is not on PATH.
        problem: why CUDA cannot be used although its library is there; empty if it can.
    """

    devices: tuple[Gpu, ...] = ()
    cuda: str | None = None
    driver: str | None = None
    absent: str = ""
    error_code: int = 0
    listed: tuple[str, ...] = ()
    smi_problem: str | None = None
    problem: str = ""


def probe_gpus(proc: Path = Path("/proc"), timeout_s: float = PROGRAM_TIMEOUT_S) -> Gpus:
    """Ask nvidia-smi and libcuda, because either may be absent in a container."""
    driver, listed, smi_problem = _nvidia_smi(timeout_s)
    driver = driver or _loaded_driver(proc)
    try:
        answer = answer_of_python(_ASK_DRIVER, hardware.__file__, timeout_s=3 * timeout_s)
    except ProbeError as error:
        return Gpus(driver=driver, listed=listed, smi_problem=smi_problem, problem=f"libcuda.so.1 {error}")
    found = spec_from_dict(hardware.CudaDriver, answer)
    code = found.error_code
    problem = f"CUDA does not start: {found.error} ({code})" if code else ""
    return Gpus(found.gpus, found.cuda, driver, found.absent, code, listed, smi_problem, problem)


def gpu_findings(gpus: Gpus) -> list[Finding]:
    """Return one finding for each GPU, or one that explains why there are none; then the driver and nvidia-smi."""
    lines = [_gpu(gpu, index, len(gpus.devices)) for index, gpu in enumerate(gpus.devices)] or [_none(gpus)]
    if gpus.driver or gpus.cuda:
        known = [gpus.driver or "version unknown", *([f"supports CUDA up to {gpus.cuda}"] if gpus.cuda else [])]
        lines.append(Finding("NVIDIA driver", "ok", ", ".join(known)))
    if gpus.smi_problem is None:
        lines.append(Finding("nvidia-smi", "not needed", "not on PATH; the driver's library was asked itself"))
    elif not gpus.smi_problem:
        lines.append(Finding("nvidia-smi", "ok", f"lists {len(gpus.listed)} GPU(s)"))
    else:
        advice = "the driver may be broken: see dmesg, load the driver again or reboot"
        lines.append(Finding("nvidia-smi", "problem", gpus.smi_problem, advice))
    return lines


def _gpu(gpu: Gpu, index: int, count: int) -> Finding:
    what = "GPU" if count == 1 else f"GPU {index}"
    found = f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_bytes / 1e9:.1f} GB"
    if tuple(map(int, gpu.compute_capability.split("."))) < OLDEST_CAPABILITY:
        advice = "TensorRT 10.12 and later need compute capability 7.5; use the target onnxruntime"
        return Finding(what, "problem", found, advice)
    return Finding(what, "ok", found)


def _none(gpus: Gpus) -> Finding:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = f"the variable CUDA_VISIBLE_DEVICES is {shortened(visible, 40)!r}" if visible is not None else ""
    if gpus.listed and gpus.absent:
        advice = "in a container, start it with --gpus=all and -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return Finding("GPU", "problem", f"nvidia-smi lists {gpus.listed[0]}, but libcuda.so.1 is not there", advice)
    if gpus.listed and not gpus.problem:
        return Finding("GPU", "problem", f"nvidia-smi lists {gpus.listed[0]}, CUDA sees none", hidden or "reboot")
    if gpus.problem and (gpus.listed or gpus.error_code != _NO_DEVICE):
        advice = _ADVICE.get(gpus.error_code) or hidden or "install NVIDIA's current driver anew and reboot"
        return Finding("GPU", "problem", gpus.problem, advice)
    found = "no libcuda.so.1" if gpus.absent else "the driver is there, a device is not"
    if gpus.driver and gpus.absent:
        advice = "a driver is loaded; in a container, start it with --gpus=all"
        return Finding("GPU", "missing", found, advice)
    return Finding("GPU", "missing", found, hidden or "everything but TensorRT works without one, on the CPU")


def _nvidia_smi(timeout_s: float) -> tuple[str | None, tuple[str, ...], str | None]:
    """Return the driver's version, the names of the GPUs, and why there was no answer (None without the program)."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return None, (), None
    try:
        text = output_of([path, "--query-gpu=driver_version,name", "--format=csv,noheader"], timeout_s)
    except ProbeError as error:
        return None, (), shortened(str(error))
    rows = [line.partition(",") for line in text.splitlines() if line.strip()]
    if not rows or not all(re.fullmatch(r"\d+(\.\d+)+", version.strip()) for version, _, _ in rows):
        return None, (), f"answered {shortened(text, 60)!r}, which is not a list of GPUs"
    return rows[0][0].strip(), tuple(shortened(name, 60) for _, _, name in rows), ""


def _loaded_driver(proc: Path) -> str | None:
    """Return the version of the loaded kernel module, which is also known without nvidia-smi."""
    try:
        with (proc / "driver" / "nvidia" / "version").open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"Kernel Module.*?(\d+\.\d+(\.\d+)?)", file.read(4096))
    except OSError:
        return None
    return found.group(1) if found else None
