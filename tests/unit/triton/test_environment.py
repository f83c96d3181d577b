"""The private environment: its key, the interpreter it chooses, what it refuses and what it passes on."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dfer_deploy.errors import DferDeployError, ServerError
from dfer_deploy.triton import environment, interpreter
from dfer_deploy.triton.environment import TritonEnvironment, check_platform, environment_key, pip_failure
from dfer_deploy.triton.interpreter import Interpreter, choose_interpreter
from dfer_deploy.triton.plain_paths import is_plain

PYTHON = Interpreter(Path("/usr/bin/python3.11"), (3, 11, 7), None)


def test_the_key_changes_with_packages_and_interpreter() -> None:
    newer = Interpreter(PYTHON.executable, (3, 11, 8), None)
    other = Interpreter(PYTHON.executable, (3, 11, 7), Path("/opt/lib/libpython3.11.so.1.0"))
    keys = {environment_key("numpy==1", python) for python in (PYTHON, newer, other)}
    keys.add(environment_key("numpy==2", PYTHON))
    assert len(keys) == 4


def test_every_package_has_one_version_for_each_python_and_hashes() -> None:
    entries = re.split(r"\n(?=\S)", environment.LOCK.read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for entry in entries:
        requirement = Requirement(entry.split("\\")[0])
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)
        for version in ("3.10", "3.11", "3.12"):
            marks = {"python_version": version, "python_full_version": f"{version}.0"}
            if requirement.marker is None or requirement.marker.evaluate(marks):
                found.setdefault(version, []).append(f"{requirement.name} {requirement.specifier}")
    wanted = {Requirement(line).name.lower() for line in lines_of(environment.LOCK.with_suffix(".in"))}
    for packages in found.values():
        assert {package.split()[0] for package in packages} == wanted
        assert len(packages) == len(wanted)
    assert "onnxruntime ==1.23.2" in found["3.10"]


def lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path))
    assert environment.cache_folder() == tmp_path
    monkeypatch.setenv(environment.CACHE_VARIABLE, "")
    assert environment.cache_folder().name == "dfer-deploy"


@pytest.mark.parametrize("found", ["~/.cache/dfer-deploy", None])
def test_a_user_without_a_home_is_told_which_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    """platformdirs returns the path as it is, or raises, depending on its version."""

    def user_cache_dir(name: str) -> str:
        if found is None:
            raise RuntimeError("could not determine the home directory")
        return found

    monkeypatch.delenv(environment.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", user_cache_dir)
    with pytest.raises(ServerError, match="set DFER_DEPLOY_CACHE to a folder"):
        environment.cache_folder()


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (("darwin", "arm64", ("", "")), "runs on Linux x86-64, this is darwin arm64"),
        (("linux", "aarch64", ("glibc", "2.36")), "runs on Linux x86-64, this is linux aarch64"),
        (("linux", "x86_64", ("glibc", "2.31")), "needs glibc 2.35 or newer, this is glibc 2.31"),
        (("linux", "x86_64", ("", "")), "this is another C library"),
    ],
)
def test_other_platforms_are_refused(machine: tuple[str, str, tuple[str, str]], said: str) -> None:
    with pytest.raises(ServerError, match=said):
        check_platform(*machine)


def test_this_platform_is_accepted() -> None:
    check_platform("linux", "x86_64", ("glibc", "2.35"))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for nvidia-pytriton==0.7.0\n\n[notice] A new release of pip",
            "(No matching distribution found for nvidia-pytriton==0.7.0); the package index cannot be reached",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "No space left on device); free about 1 GB",
        ),
        ("", "(no output); check pip's configuration"),
    ],
)
def test_pip_failures_are_one_sentence(output: str, said: str) -> None:
    message = str(pip_failure(output, Path("/cache/triton.log")))
    assert said in message
    assert message.endswith("the whole output is in /cache/triton.log")
    assert "\n" not in message


def test_nothing_of_the_callers_python_reaches_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "/elsewhere")
    made = TritonEnvironment(
        root=tmp_path,
        python=tmp_path / "bin" / "python3",
        tritonserver=tmp_path / "tritonserver",
        backend_directory=tmp_path / "backends",
        libraries=(tmp_path / "lib", tmp_path / "libs"),
        perf_analyzer=tmp_path / "bin" / "perf_analyzer",
    )
    variables = made.process_environment()
    assert variables["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:{tmp_path}/libs"
    assert variables["PATH"] == f"{tmp_path}/bin:{os.environ['PATH']}"
    assert "/elsewhere" not in variables.values()


def fake_python(folder: Path, name: str, output: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{output}\n")
    path.chmod(0o755)


def facts(version: str, own: str, system: str) -> str:
    return f"""echo '{{"version": [{version}], "own": {own}, "system": {system}}}'"""


@pytest.fixture
def path_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_python(tmp_path, "python3.13", facts("3, 13, 1", '["/lib/libpython3.13.so.1.0"]', "true"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.13"))
    return tmp_path


def test_the_running_python_comes_first(monkeypatch: pytest.MonkeyPatch, path_folder: Path) -> None:
    fake_python(path_folder, "python3.12", facts("3, 12, 1", "[]", "true"))
    fake_python(path_folder, "mine", facts("3, 10, 4", '["/opt/libpython3.10.so.1.0"]', "true"))
    monkeypatch.setattr(sys, "executable", str(path_folder / "mine"))
    assert choose_interpreter() == Interpreter(path_folder / "mine", (3, 10, 4), Path("/opt/libpython3.10.so.1.0"))


def test_an_unsupported_running_python_and_broken_ones_are_passed_over(path_folder: Path) -> None:
    fake_python(path_folder, "python3.12", "echo 'not installed in this version manager' >&2; exit 127")
    fake_python(path_folder, "python3.11", facts("3, 11, 2", "[]", "false"))
    fake_python(path_folder, "python3.10", facts("3, 10, 4", "[]", "true"))
    assert choose_interpreter() == Interpreter(path_folder / "python3.10", (3, 10, 4), None)


def test_a_missing_shared_library_names_its_package(path_folder: Path) -> None:
    fake_python(path_folder, "python3.11", facts("3, 11, 2", "[]", "false"))
    with pytest.raises(ServerError, match=r"needs libpython3\.11\.so\.1\.0, .*apt install libpython3\.11"):
        choose_interpreter()


def test_no_usable_python(path_folder: Path) -> None:
    with pytest.raises(ServerError, match=r"needs Python 3\.10, 3\.11 or 3\.12"):
        choose_interpreter()


def fake_interpreter(folder: Path, script: str) -> Interpreter:
    fake_python(folder, "python3.11", script)
    return Interpreter(folder / "python3.11", (3, 11, 2), None)


def test_a_python_without_venv_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = fake_interpreter(tmp_path, "echo 'because ensurepip is not available.'; exit 1")
    monkeypatch.setattr(environment, "choose_interpreter", lambda: python)
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(ServerError, match=r"apt install python3\.11-venv"):
        environment.triton_environment()


def test_a_failed_installation_leaves_no_half_made_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fake ``python -m venv FOLDER`` that makes a folder in which pip finds no network."""
    pip = "#!/bin/sh\\necho ERROR: no route to the index, NewConnectionError\\nexit 1\\n"
    python = fake_interpreter(
        tmp_path, f'mkdir -p "$3/bin"; printf "{pip}" > "$3/bin/python"; chmod +x "$3/bin/python"'
    )
    monkeypatch.setattr(environment, "choose_interpreter", lambda: python)
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{tmp_path}")
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(ServerError, match="the package index cannot be reached") as failed:
        environment.triton_environment()
    left = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert left == [".lock", ".log"]
    log = Path(str(failed.value).rpartition("is in ")[2])
    assert "no route to the index" in log.read_text()


def test_venv_and_pip_get_plain_paths_and_none_of_the_callers_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A fake ``python -m venv FOLDER``, whose pip writes its arguments and variables."""
    seen = tmp_path / "seen"
    pip = f"#!/bin/sh\\n(echo $0 in $PWD; env) >> {seen}\\nexit 1\\n"
    python = fake_interpreter(
        tmp_path, f'mkdir -p "$3/bin"; printf "{pip}" > "$3/bin/python"; chmod +x "$3/bin/python"'
    )
    monkeypatch.setattr(environment, "choose_interpreter", lambda: python)
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{tmp_path}")
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path / "a: cache"))
    monkeypatch.setenv("PIP_CONSTRAINT", "/elsewhere")
    with pytest.raises(DferDeployError, match="pip could not install"):
        environment.triton_environment()
    program, _, last = seen.read_text().rpartition(" in /\n")
    assert is_plain(Path(program.splitlines()[-1]))
    assert "PIP_CONFIG_FILE=/dev/null" in last
    assert "/elsewhere" not in last
    assert not list(Path("/tmp").glob(f"dfer_deploy_{os.getpid()}_*"))


def test_a_cache_on_a_file_system_without_locks_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with environment._locked(tmp_path / "a.lock"):
        pass


def test_the_probe_tells_the_truth_about_this_python() -> None:
    found = interpreter._probe(sys.executable)
    assert found is not None
    assert found["version"] == list(sys.version_info[:3])
    assert interpreter._probe("/nowhere/python3.11") is None


def test_an_unwritable_cache_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(environment, "choose_interpreter", lambda: PYTHON)
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ServerError, match="DFER_DEPLOY_CACHE"):
        environment.triton_environment()
