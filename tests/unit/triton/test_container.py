"""The command line that starts NVIDIA's container, and which image it starts."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dfer_deploy.bundles.compatibility import CONTAINERS, SECURITY_FLOOR
from dfer_deploy.bundles.engine_records import Builder, EngineSet
from dfer_deploy.errors import ServerError
from dfer_deploy.triton.container import TritonContainer, compose_command, ensure_image, image_for, is_outdated
from dfer_deploy.triton.ports import Endpoints

ENDPOINTS = Endpoints("127.0.0.1", 9000, 9001, 9002)


def command(repository: str = "/b/model_repository", docker: str = "docker", **options: bool) -> list[str]:
    container = TritonContainer(Path(docker), "image:1", options.pop("has_gpu", True), **options)
    return container.server_command(Path(repository), ENDPOINTS, "mark_", 30)


def engines(version: str, *, version_compatible: bool = False) -> EngineSet:
    return EngineSet(Builder(module="tensorrt", version=version, version_compatible=version_compatible), None, {})


def test_the_container_has_few_rights() -> None:
    before, after = " ".join(command()).split(" image:1 ")
    for option in (
        "run --rm",
        "--name=mark_",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--publish=127.0.0.1:9000:8000",
        "--publish=127.0.0.1:9001:8001",
        "--publish=127.0.0.1:9002:8002",
        "--gpus=all",
    ):
        assert option in before
    assert "--mount=type=bind,source=/b/model_repository,target=/models,readonly" in before
    assert after.startswith("tritonserver --model-repository=/models --model-control-mode=none ")
    assert "--exit-timeout-secs=30" in after
    assert "--gpus=all" not in command(has_gpu=False)
    assert "--backend-config=tensorrt,version-compatible=true" not in after
    assert "--backend-config=tensorrt,version-compatible=true" in command(version_compatible=True)


@pytest.mark.parametrize(("uid", "expected"), [(0, "--user=1000:1000"), (501, "--user=501:501")])
def test_it_never_runs_as_root(monkeypatch: pytest.MonkeyPatch, uid: int, expected: str) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(os, "getgid", lambda: uid)
    assert expected in command()


def test_the_command_line_holds_no_secret() -> None:
    """Every local user can read it. The key cannot be sent: it has a capital letter, and a line break in its value."""
    keys = {word.split(":", 1)[1] for word in command() if "restricted" in word}
    (name, value) = keys.pop().split("=")
    assert not keys
    assert name != name.lower()
    assert "\n" in value


def test_a_path_with_a_comma_stays_one_path() -> None:
    (mount,) = [word for word in command('/a,b "c"/repository') if word.startswith("--mount=")]
    (fields,) = csv.reader([mount.removeprefix("--mount=")])
    assert fields == ["type=bind", 'source=/a,b "c"/repository', "target=/models", "readonly"]


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no Docker client that could read the options")
def test_dockers_own_client_understands_the_options() -> None:
    # It reads all options before it asks for the daemon, which is somewhere that does not answer.
    words = command('/a,b "c"/repository', docker=str(shutil.which("docker")))
    environment = os.environ | {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "Cannot connect to the Docker daemon" in done.stderr
    broken = [word.replace("--cap-drop", "--cap-dropp") for word in words]
    done = subprocess.run(broken, env=environment, capture_output=True, text=True, check=False)
    assert "unknown flag" in done.stderr


def test_the_image_has_the_engines_tensorrt() -> None:
    folder = Path("/my bundle")
    assert image_for(None, folder) == f"nvcr.io/nvidia/tritonserver:{SECURITY_FLOOR}-py3"
    for container in CONTAINERS:
        if container.tag >= SECURITY_FLOOR:
            assert image_for(engines(f"{container.tensorrt}.0.106"), folder) == container.image
    with pytest.raises(
        ServerError, match=r"no container since 26\.07 is known to have TensorRT 10\.16\.1\.11"
    ) as unknown:
        image_for(engines("10.16.1.11"), folder)
    assert f"({compose_command(folder, 'run', '--rm', 'build')})" in str(unknown.value)
    assert image_for(engines("10.16.1.11", version_compatible=True), folder) == CONTAINERS[1].image


def test_a_printed_compose_command_runs_as_printed(tmp_path: Path) -> None:
    """A client that prints what it is given, since no Docker is needed to see that."""
    (tmp_path / "docker").write_text('#!/bin/sh\nprintf "%s|" "$UID" "$GID" "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = compose_command(Path("/a b/it's"), "up", "server")
    said = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True).stdout
    assert said == f"{os.getuid()}|{os.getgid()}|compose|--project-directory|/a b/it's|up|server|"


def test_old_images_of_nvidia_are_known() -> None:
    for image in ("tritonserver:24.01-py3", "tritonserver:24.01", "host:5000/x/tritonserver:26.06"):
        assert is_outdated(image)
    for image in ("tritonserver:", "tritonserver:26.07", "my-tritonserver:24.01", "tritonserver:24.011"):
        assert not is_outdated(image)
    assert is_outdated("nvcr.io/nvidia/tritonserver:26.06-py3")
    assert not is_outdated("nvcr.io/nvidia/tritonserver:26.07-py3")
    assert not is_outdated("registry.example.org/own@sha256:0")


def test_an_image_is_pulled_once(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        '#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\n'
        'case "$1 $3" in "image good:1") exit 0 ;; "image "*) exit 1 ;; esac\n[ "$2" = fetched:1 ]\n'
    )
    docker.chmod(0o755)
    ensure_image(docker, "good:1")
    ensure_image(docker, "fetched:1")
    with pytest.raises(ServerError, match=r"docker could not pull missing:1 \(exit code 1"):
        ensure_image(docker, "missing:1")
    calls = (tmp_path / "calls").read_text().splitlines()
    inspected = [f"image inspect {name}:1" for name in ("good", "fetched", "missing")]
    assert calls == [inspected[0], inspected[1], "pull fetched:1", inspected[2], "pull missing:1"]
