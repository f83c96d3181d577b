"""The private environment of the embedded server: a virtual environment in the cache folder, made on first use.

The Python package ``nvidia-pytriton`` contains ``tritonserver`` and its Python backend, and ``tritonclient`` contains
``perf_analyzer``. This Python backend transports arrays correctly with NumPy 1.26 only. The server's models therefore
run in a separate environment, and the environment of dfer-deploy keeps its NumPy 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.console import stderr, step
from dfer_deploy.errors import ServerError
from dfer_deploy.files import write_json
from dfer_deploy.machine.children import WORKING_DIRECTORY, child_environment, end_with_parent
from dfer_deploy.triton.cache import CACHE_VARIABLE, cache_folder
from dfer_deploy.triton.installation import RESTRICTED, address_options, server_options
from dfer_deploy.triton.interpreter import Interpreter, choose_interpreter
from dfer_deploy.triton.pip_settings import pip_variables
from dfer_deploy.triton.plain_paths import PlainLinks, check_places
from dfer_deploy.triton.ports import Endpoints
from dfer_deploy.triton.private_folder import check_content, make_private

LOCK = Path(__file__).with_name("environment.lock")
"""The packages of the environment with the hashes of their wheels. ``environment.in`` says how the file is made."""

LAYOUT = 2
"""Version of the folders that this module adds to the virtual environment; a part of the environment's key."""

MINIMAL_GLIBC = (2, 35)

_MARKER = "complete.json"


@dataclass(frozen=True)
class TritonEnvironment:
    """The parts of an installed private environment. All paths are absolute.

    Attributes:
        root: folder of the virtual environment.
        python: interpreter of the environment, with NumPy 1.26 and onnxruntime.
        tritonserver: executable of the server.
        backend_directory: folder that holds ``python/``, for the option ``--backend-directory``.
        libraries: folders of shared libraries, in the order of the search.
        perf_analyzer: executable of the load generator.
        restricted: interfaces of the server that are closed to clients, by Triton's names.
    """

    root: Path
    python: Path
    tritonserver: Path
    backend_directory: Path
    libraries: tuple[Path, ...]
    perf_analyzer: Path
    restricted: tuple[str, ...] = RESTRICTED

    description = "the embedded server"
    has_gpu = False

    def server_command(self, repository: Path, endpoints: Endpoints, mark: str, exit_timeout_s: int) -> list[str]:
        """Build the command; see ``Installation``. The mark also begins the names of the backend's shared memory."""
        return [
            str(self.tritonserver),
            f"--backend-directory={self.backend_directory}",
            f"--backend-config=python,shm-region-prefix-name={mark}",
            *server_options(repository, exit_timeout_s, self.restricted),
            *address_options(endpoints),
            "--allow-gpu-metrics=false",
            # Pinned memory is of use for a GPU only; the pool would take 256 MB.
            "--pinned-memory-pool-byte-size=0",
        ]

    def end_command(self, mark: str) -> list[str]:
        """Build an empty command, because the server ends with its processes."""
        return []

    def process_environment(self) -> dict[str, str]:
        """Build the environment variables for tritonserver and perf_analyzer.

        The Python backend's stub finds its packages through the first ``python3`` on PATH. The caller's
        LD_LIBRARY_PATH is replaced, because it could lead to older libraries.
        """
        variables = child_environment()
        variables["PATH"] = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", os.defpath)])
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, self.libraries))
        return variables

    def at_plain_paths(self, repository: Path, links: PlainLinks) -> tuple[TritonEnvironment, Path]:
        """Return this environment and the model repository at plain paths; see ``plain_paths``."""
        check_places(self.root)
        return self.below(links.to(self.root, "environment")), links.to(repository, "model_repository")

    def below(self, root: Path) -> TritonEnvironment:
        """Return the same environment with all paths below ``root``, which is its root or a link to it."""
        moved = {
            name: root / getattr(self, name).relative_to(self.root)
            for name in ("python", "tritonserver", "backend_directory", "perf_analyzer")
        }
        libraries = tuple(root / folder.relative_to(self.root) for folder in self.libraries)
        return dataclasses.replace(self, root=root, libraries=libraries, **moved)


def triton_environment() -> TritonEnvironment:
    """Open the private environment. It is made on first use (about 390 MB) and reused afterwards.

    If two processes need it at the same time, the second waits until the first has made it.

    Raises:
        DferDeployError: this machine cannot run the server, or pip cannot install the environment.
    """
    root, interpreter = _place()
    make_private(root.parent, CACHE_VARIABLE)
    if not _is_complete(root):
        with _locked(root.with_suffix(".lock")):
            if not _is_complete(root):
                _make(root, interpreter, root.with_suffix(".log"))
    check_content(root, CACHE_VARIABLE)
    return _layout(root, interpreter)


def installed_triton_environment() -> TritonEnvironment | None:
    """Open the private environment if it has been made already.

    Returns:
        The environment, or None if it has not been made.

    Raises:
        DferDeployError: this machine cannot run the server.
    """
    root, interpreter = _place()
    return _layout(root, interpreter) if _is_complete(root) else None


def _place() -> tuple[Path, Interpreter]:
    """The environment's folder and its Python."""
    check_platform(sys.platform, platform.machine(), platform.libc_ver())
    interpreter = choose_interpreter()
    key = environment_key(LOCK.read_text(encoding="utf-8"), interpreter)
    return cache_folder() / f"triton-{key}", interpreter


def environment_key(lock: str, interpreter: Interpreter) -> str:
    """Compute the environment's key: 12 hexadecimal digits that hash its packages, interpreter and ``LAYOUT``."""
    content = [LAYOUT, lock, list(interpreter.version), str(interpreter.libpython)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def check_platform(system: str, machine: str, libc: tuple[str, str]) -> None:
    """Check that the server's wheel runs on a machine.

    Args:
        system: value of ``sys.platform``.
        machine: value of ``platform.machine()``.
        libc: value of ``platform.libc_ver()``.

    Raises:
        DferDeployError: the machine is not Linux x86-64 with glibc 2.35 or newer.
    """
    advice = "use the target onnxruntime with a Triton container instead"
    if system != "linux" or machine != "x86_64":
        raise ServerError(f"the embedded server runs on Linux x86-64, this is {system} {machine}; {advice}")
    name, version = libc
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < MINIMAL_GLIBC:
        found = f"{name} {version}".strip() or "another C library"
        raise ServerError(
            f"the embedded server needs glibc {'.'.join(map(str, MINIMAL_GLIBC))} or newer, this is {found}; {advice}"
        )


def pip_failure(output: str, log: Path) -> ServerError:
    """Build the error for a failed pip from its ``output``; ``log`` is the file with the whole output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no output"])[-1].removeprefix("ERROR:").strip()
    if "No space left on device" in output:
        advice = f"free about 1 GB, or choose another place with {CACHE_VARIABLE}"
    elif any(sign in output for sign in ("NewConnectionError", "NameResolutionError", "Read timed out", "ProxyError")):
        advice = "the package index cannot be reached: check the network and pip's configuration"
    else:
        advice = "check pip's configuration"
    return ServerError(
        f"pip could not install the embedded server's environment ({last}); {advice}; the whole output is in {log}"
    )


def _make(root: Path, interpreter: Interpreter, log: Path) -> None:
    stderr.print(f"The embedded server needs an environment of its own (once, about 390 MB): {root}", markup=False)
    variables = child_environment(proxies=True)
    links = PlainLinks(f"dfer_deploy_{os.getpid()}_")
    try:
        # A virtual environment cannot be moved, so it is built in place; only the marker makes it valid.
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        plain = links.to(root.parent, "cache") / root.name  # venv refuses a colon, and to write into a link
        python = str(plain / "bin" / "python")
        with step(f"virtual environment with Python {'.'.join(map(str, interpreter.version))}"):
            made = _run([str(interpreter.executable), "-m", "venv", str(plain)], variables, log)
            if made.returncode != 0:
                raise _venv_failure(made.stdout, interpreter, log)
        with step(f"pip install -r {LOCK.name}, with the hashes of its wheels"):
            # Wheels only, because the build of a source distribution executes what its hash does not cover. Without
            # dependencies, because the server uses none of the forty that its packages name.
            pip = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--require-hashes"]
            options = ["--no-deps", "--only-binary=:all:", f"--requirement={LOCK}"]
            installed = _run([*pip, *options], variables | pip_variables(python), log)
            if installed.returncode != 0:
                raise pip_failure(installed.stdout, log)
        with step("checking that server, Python backend and perf_analyzer start"):
            _assemble(root, interpreter)
            _check(_layout(root, interpreter).below(plain), log)
        write_json(root / _MARKER, {"packages": LOCK.name, "python": list(interpreter.version)})
    except OSError as error:
        shutil.rmtree(root, ignore_errors=True)
        raise ServerError(
            f"cannot make the environment {root}: {error.strerror or error}; "
            f"free some space, or choose another place with {CACHE_VARIABLE}"
        ) from error
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    finally:
        links.remove()


def _run(command: list[str], variables: dict[str, str], log: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with both outputs joined, and append them to the log."""
    done = subprocess.run(
        command, env=variables, cwd=WORKING_DIRECTORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False, preexec_fn=end_with_parent,
        umask=0o077,
    )  # fmt: skip
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}")
    return done


def _venv_failure(output: str, interpreter: Interpreter, log: Path) -> ServerError:
    short = ".".join(map(str, interpreter.version[:2]))
    if "ensurepip" in output or "No module named venv" in output:
        return ServerError(
            f"{interpreter.executable} cannot make virtual environments (its modules venv and ensurepip are missing); "
            f"install them, on Debian and Ubuntu with: apt install python{short}-venv"
        )
    return pip_failure(output, log)


def _site_packages(root: Path, interpreter: Interpreter) -> Path:
    return root / "lib" / f"python{interpreter.version[0]}.{interpreter.version[1]}" / "site-packages"


def _layout(root: Path, interpreter: Interpreter) -> TritonEnvironment:
    site = _site_packages(root, interpreter)
    return TritonEnvironment(
        root=root,
        python=root / "bin" / "python3",
        tritonserver=site / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        backend_directory=root / "triton" / "backends",
        libraries=(root / "triton" / "lib", site / "nvidia_pytriton.libs"),
        perf_analyzer=root / "bin" / "perf_analyzer",
    )


def _assemble(root: Path, interpreter: Interpreter) -> None:
    """Link the backend and its stub into one folder, and libraries under their plain names."""
    environment = _layout(root, interpreter)
    distribution = environment.tritonserver.parent.parent
    short = ".".join(map(str, interpreter.version[:2]))
    backend = environment.backend_directory / "python"
    backend.mkdir(parents=True)
    for file in sorted((distribution / "backends" / "python").iterdir()):
        if file.is_file():
            (backend / file.name).symlink_to(file)
    stub = distribution / "python_backend_stubs" / short / "triton_python_backend_stub"
    (backend / stub.name).symlink_to(stub)

    plain, bundled = environment.libraries
    plain.mkdir(parents=True)
    # The wheel's libraries have a hash in their names, but perf_analyzer, from another wheel, needs the plain names.
    for name, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12.*")):
        (plain / name).symlink_to(next(iter(bundled.glob(pattern))))
    # Serving must not write bytecode into a bundle, and the stub ignores PYTHONDONTWRITEBYTECODE.
    (_site_packages(root, interpreter) / "dfer_deploy.pth").write_text("import sys; sys.dont_write_bytecode = True\n")
    if interpreter.libpython is not None:
        (plain / interpreter.libpython.name).symlink_to(interpreter.libpython)


def _check(environment: TritonEnvironment, log: Path) -> None:
    variables = environment.process_environment()
    versions = "import numpy, onnxruntime; assert numpy.__version__.startswith('1.26'), numpy.__version__"
    stub = environment.backend_directory / "python" / "triton_python_backend_stub"
    for what, command, expected in (
        ("NumPy 1.26 and onnxruntime", [str(environment.python), "-c", versions], ""),
        ("tritonserver", [str(environment.tritonserver), "--help"], "Usage"),
        ("perf_analyzer", [str(environment.perf_analyzer), "--version"], "Perf Analyzer"),
        ("the Python backend's stub", [str(stub)], "Expected"),
    ):
        done = _run(command, variables, log)
        if expected not in done.stdout or (not expected and done.returncode != 0):
            last = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ServerError(f"{what} does not start in {environment.root} ({last}); the whole output is in {log}")


def _is_complete(root: Path) -> bool:
    # The interpreter may have been removed since, which leaves a broken link.
    return (root / _MARKER).is_file() and (root / "bin" / "python3").exists()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ServerError(
            f"cannot write {path}: {error.strerror or error}; choose another place with {CACHE_VARIABLE}"
        ) from error
    with file:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stderr.print("Another process is making the embedded server's environment; waiting for it …")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
