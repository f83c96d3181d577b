"""The driver's library and nvidia-smi, in every state of disrepair.

The libraries are compiled here from a few lines of C: they prove that the calls are made as the driver declares them
and that failures are told, not that a GPU works.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dfer_deploy.doctor.gpu import Gpus, gpu_findings, probe_gpus
from dfer_deploy.hardware import Gpu

COMPILER = shutil.which("cc")
PATH = os.environ["PATH"]  # the compiler finds its assembler there; the tests empty it

LIBCUDA = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "the text"; return 0; }
int cuInit(unsigned flags) { INIT }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 40 ? "NVIDIA H100 80GB HBM3" : "NVIDIA A10", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)85 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = device == 40 ? (attribute == 75 ? 9 : attribute == 76 ? 0 : -1) : (attribute == 75 ? 8 : 6);
    return 0;
}
"""


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, init: str) -> None:
    """Makes a libcuda.so.1 the one that the loader finds first."""
    if COMPILER is None:
        pytest.skip("no C compiler to make a broken libcuda.so.1 with")
    source = folder / "cuda.c"
    source.write_text(LIBCUDA.replace("INIT", init))
    command = [COMPILER, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source]
    subprocess.run(command, env={"PATH": PATH}, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes a nvidia-smi the only program on PATH."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing on PATH, no libcuda.so.1 (a file that is none stands before a real one)."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return tmp_path


def probed(folder: Path, timeout_s: float = 10) -> Gpus:
    return probe_gpus(proc=folder / "no proc", timeout_s=timeout_s)


def states(gpus: Gpus) -> dict[str, str]:
    return {finding.what: finding.state for finding in gpu_findings(gpus)}


def test_a_machine_without_anything(bare: Path) -> None:
    found = probed(bare)
    assert not found.devices
    assert found.absent
    assert states(found) == {"GPU": "missing", "nvidia-smi": "not needed"}


def test_the_driver_library_alone_tells_everything(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(bare, monkeypatch, "return 0;")
    found = probed(bare)
    assert found.devices == (Gpu("NVIDIA H100 80GB HBM3", "9.0", 85 << 30), Gpu("NVIDIA A10", "8.6", 85 << 30))
    assert found.cuda == "13.1"
    assert states(found) == {"GPU 0": "ok", "GPU 1": "ok", "NVIDIA driver": "ok", "nvidia-smi": "not needed"}


@pytest.mark.parametrize(
    ("init", "state", "said"),
    [
        ("return 100;", "missing", "a device is not"),
        ("return 803;", "problem", "CUDA does not start: the text (803)"),
        ("return 999;", "problem", "CUDA does not start: the text (999)"),
        ("abort();", "problem", "libcuda.so.1 crashed with SIGABRT"),
        ("volatile int *nowhere = 0; return *nowhere;", "problem", "libcuda.so.1 crashed with SIGSEGV"),
        ("sleep(60); return 0;", "problem", "libcuda.so.1 did not answer within 1.5 s"),
    ],
)
def test_a_driver_that_does_not_start(
    bare: Path, monkeypatch: pytest.MonkeyPatch, init: str, state: str, said: str
) -> None:
    library(bare, monkeypatch, init)
    line = gpu_findings(probed(bare, timeout_s=0.5 if "sleep" in init else 10))[0]
    assert (line.what, line.state) == ("GPU", state)
    assert said in line.found


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 9", "failed with exit code 9"),
        ("echo NVIDIA-SMI has failed because it could not communicate with the driver; exit 9", "has failed because"),
        ("echo '<html>'", "'<html>', which is not a list of GPUs"),
        ("printf '\\377\\376\\000\\033[2J'", "which is not a list of GPUs"),
        ("exit 0", "'', which is not a list of GPUs"),
        ("kill -ILL $$", "crashed with SIGILL"),
        ("while :; do :; done", "did not answer within 0.5 s"),
    ],
)
def test_a_broken_nvidia_smi_is_a_line(bare: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    program(bare, monkeypatch, script)
    line = gpu_findings(probed(bare, timeout_s=0.5 if "while" in script else 10))[-1]
    assert (line.what, line.state) == ("nvidia-smi", "problem")
    assert said in line.found
    assert line.found.isprintable()


def test_a_gpu_that_only_nvidia_smi_sees(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare, monkeypatch, "echo '580.65.06, NVIDIA L4'")
    found = probed(bare)
    assert found.driver == "580.65.06"
    line = gpu_findings(found)[0]
    assert line.state == "problem"
    assert line.found == "nvidia-smi lists NVIDIA L4, but libcuda.so.1 is not there"
    assert "--gpus=all" in line.advice


def test_hidden_devices_are_told(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(bare, monkeypatch, "return 100;")
    program(bare, monkeypatch, "echo '580.65.06, NVIDIA L4'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    line = gpu_findings(probed(bare))[0]
    assert line.state == "problem"
    assert line.advice == "the variable CUDA_VISIBLE_DEVICES is '7'"


def test_the_loaded_kernel_module_tells_the_driver(bare: Path) -> None:
    folder = bare / "proc" / "driver" / "nvidia"
    folder.mkdir(parents=True)
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12.3.0\n"
    (folder / "version").write_text(text)
    found = probe_gpus(proc=bare / "proc")
    assert found.driver == "580.65.06"
    assert "in a container, start it with --gpus=all" in gpu_findings(found)[0].advice


def test_a_gpu_older_than_turing_is_a_problem() -> None:
    assert states(Gpus((Gpu("Tesla V100", "7.0", 16 << 30),)))["GPU"] == "problem"
    assert states(Gpus((Gpu("Tesla T4", "7.5", 16 << 30),)))["GPU"] == "ok"
    assert states(Gpus((Gpu("NVIDIA RTX PRO 6000", "12.0", 96 << 30),)))["GPU"] == "ok"
