"""The files for Docker in a bundle, as far as they can be tried without Docker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import PIL
import pytest
from packaging.version import Version
from ruamel.yaml import YAML

from dfer_deploy.bundles.compatibility import SECURITY_FLOOR
from dfer_deploy.triton.environment import LOCK
from dfer_deploy.triton.installation import server_options
from dfer_deploy.triton_models import container_files
from dfer_deploy.triton_models.container import install_tensorrt

TARGETS = ("tensorrt", "onnxruntime")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def services(target: str) -> dict[str, dict[str, Any]]:
    """The services of compose.yaml, with the variables' defaults put in."""
    text = VARIABLE.sub(lambda found: found[2], container_files(target)["compose.yaml"])
    return YAML(typ="safe").load(text)["services"]  # type: ignore[no-any-return]


def instructions(target: str) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined."""
    lines = [line for line in container_files(target)["Dockerfile"].splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined if line)]


def test_each_target_gets_what_it_needs() -> None:
    assert set(container_files("tensorrt")) == {"Dockerfile", "compose.yaml", "healthcheck.py", "install_tensorrt.py"}
    assert set(container_files("onnxruntime")) == {"Dockerfile", "compose.yaml", "healthcheck.py"}
    assert container_files("embedded") == {}
    assert set(services("tensorrt")) == {"server", "build"}
    assert set(services("onnxruntime")) == {"server"}
    assert services("onnxruntime")["server"] == services("tensorrt")["server"]


@pytest.mark.parametrize("target", TARGETS)
def test_compose_keeps_the_specification(target: str, tmp_path: Path) -> None:
    def check(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "compose.yaml").write_text(text)
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
        return subprocess.run([*command, tmp_path / "compose.yaml"], capture_output=True, text=True, check=False)

    text = container_files(target)["compose.yaml"]
    good = check(text)
    assert good.returncode == 0, good.stdout
    assert check(text.replace("cap_drop", "cap_dropp")).returncode == 1


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_has_few_rights_and_the_loopback(target: str) -> None:
    server = services(target)["server"]
    assert [port.split(":")[0] for port in server["ports"]] == ["127.0.0.1"] * 3
    assert [port.split(":")[2] for port in server["ports"]] == ["8000", "8001", "8002"]
    (models,) = server["volumes"]
    assert (models["source"], models["target"], models["read_only"]) == ("./model_repository", "/models", True)
    assert server["read_only"]
    assert (server["tmpfs"], server["cap_drop"], server["user"]) == (["/tmp"], ["ALL"], "1000:1000")
    assert server["security_opt"] == ["no-new-privileges:true"]
    exit_timeout = re.search(r"--exit-timeout-secs=(\d+)", container_files(target)["Dockerfile"])
    assert exit_timeout is not None
    assert int(server["stop_grace_period"].removesuffix("s")) > int(exit_timeout[1])


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_can_decode_images(target: str) -> None:
    """Its Pillow is one that the embedded server may have too; root installs it, the server does not run as root."""
    steps = instructions(target)
    (install,) = (rest for name, rest in steps if name == "RUN" and "Pillow" in rest)
    oldest, newest = re.search(r'"Pillow>=([\d.]+),<(\d+)"', install).groups()
    assert f"Pillow>={oldest}\n" in LOCK.with_suffix(".in").read_text()
    assert Version(oldest) <= Version(PIL.__version__) < Version(newest)
    assert steps.index(("RUN", install)) < steps.index(("USER", "1000:1000"))


def test_the_build_has_no_network_and_the_same_image() -> None:
    build, server = services("tensorrt")["build"], services("tensorrt")["server"]
    assert (build["network_mode"], build["profiles"], build["user"]) == ("none", ["build"], "1000:1000")
    assert build["build"]["args"] == server["build"]["args"] == {"TRITON_TAG": SECURITY_FLOOR}
    stages = [rest.rpartition(" AS ")[2] for name, rest in instructions("tensorrt") if name == "FROM"]
    assert stages == [server["build"]["target"], build["build"]["target"]] == ["serve", "build"]
    (mounted,) = build["volumes"]
    assert ("CMD", f'["python3", "{mounted["target"]}/build_engines.py"]') in instructions("tensorrt")


@pytest.mark.parametrize("target", TARGETS)
def test_the_images_end_without_root_and_copy_only_what_is_there(target: str) -> None:
    written = instructions(target)
    assert ("ARG", f"TRITON_TAG={SECURITY_FLOOR}") in written
    assert written[1] == ("FROM", "nvcr.io/nvidia/tritonserver:${TRITON_TAG}-py3 AS serve")
    assert [rest for name, rest in written if name == "USER"][-1] == "1000:1000"
    copied = [rest.split()[0] for name, rest in written if name == "COPY"]
    assert set(copied) <= set(container_files(target))


@pytest.mark.parametrize(("release", "accepted"), [("26.07", True), ("26.10", True), ("27.01", True), ("26.06", False)])
def test_old_releases_are_refused(release: str, accepted: bool) -> None:
    line = next(rest for name, rest in instructions("onnxruntime") if name == "RUN")
    environment = {"PATH": os.environ["PATH"], "NVIDIA_TRITON_SERVER_VERSION": release}
    done = subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == accepted, done.stderr
    if not accepted:
        assert "Triton 26.06 has critical vulnerabilities" in done.stderr


def started(folder: Path, **variables: str) -> list[str]:
    """The arguments that the serving image gives to tritonserver."""
    binary = folder / "tritonserver"
    binary.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    binary.chmod(0o755)
    line = next(rest for name, rest in instructions("tensorrt") if name == "CMD")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    done = subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_the_server_is_closed_but_for_who_has_the_key(tmp_path: Path) -> None:
    arguments = started(tmp_path)
    for option in ("--model-repository=/models", "--model-control-mode=none", "--disable-auto-complete-config"):
        assert option in arguments
    closed = server_options(Path("/models"), 30)
    assert [word for word in closed if "restricted" in word] == [word for word in arguments if "restricted" in word]
    given = started(tmp_path, DFER_DEPLOY_KEY="mine", TRITON_OPTIONS="--log-verbose=1 --allow-metrics=false")
    assert len([word for word in given if word.endswith(":dfer-deploy=mine")]) == 2
    assert given[-2:] == ["--log-verbose=1", "--allow-metrics=false"]
    # As compose.yaml passes them on where nobody set them.
    assert started(tmp_path, DFER_DEPLOY_KEY="", TRITON_OPTIONS="") == arguments


def rtx_library() -> str:
    found = util.find_spec("tensorrt_rtx_libs")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tensorrt-rtx-cu13 is not installed")
    return str(next(Path(found.submodule_search_locations[0]).glob("libtensorrt_rtx.so*")))


def test_the_version_comes_from_the_library_that_the_backend_loads(tmp_path: Path) -> None:
    """TensorRT-RTX's library, which has the same functions, in the place of libnvinfer."""
    version = install_tensorrt.version_of_library(rtx_library())
    import tensorrt_rtx

    assert version == tensorrt_rtx.__version__
    backend = tmp_path / "libtriton_tensorrt.so"
    backend.write_bytes(b"\x7fELF\0libnvinfer_plugin.so.11\0libnvinfer.so.11\0")
    assert install_tensorrt.backend_library(backend) == "libnvinfer.so.11"
    backend.write_bytes(b"\x7fELF")
    with pytest.raises(LookupError, match="asks for no libnvinfer"):
        install_tensorrt.backend_library(backend)


def test_what_does_not_fit_is_told_in_words(monkeypatch, capsys, tmp_path: Path) -> None:
    assert install_tensorrt.cuda_major("13.0.2") == "13"
    with pytest.raises(LookupError, match="CUDA_VERSION is ''"):
        install_tensorrt.cuda_major("")
    assert install_tensorrt.is_same("10.14.1.48.post1", "10.14.1.48")
    assert not install_tensorrt.is_same("11.1.0.10", "11.1.0.106")
    with pytest.raises(LookupError, match="does not tell its version"):
        install_tensorrt.version_of_library("libc.so.6")
    monkeypatch.setattr(sys, "argv", ["install_tensorrt.py", "--library", "libnowhere.so.1"])
    assert install_tensorrt.main() == 1
    assert "use the image nvcr.io/nvidia/tensorrt of the same release" in capsys.readouterr().err


def test_the_module_of_another_version_is_refused(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text('__version__ = "9.9.9.9"\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["install_tensorrt.py", "--library", rtx_library()])
    assert install_tensorrt.main() == 1
    assert "its Python module is 9.9.9.9; use the image" in capsys.readouterr().err
