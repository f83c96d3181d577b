"""Serving and asking need neither torch nor TensorRT."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "dfer_deploy.commands.serve",
    "dfer_deploy.export.repository",
    "dfer_deploy.triton.client",
    "dfer_deploy.triton.environment",
    "dfer_deploy.triton.perf_analyzer",
    "dfer_deploy.triton.server",
    "dfer_deploy.triton_models",
)


def test_no_heavy_package_is_imported() -> None:
    script = f"""
import importlib, sys
for name in {MODULES}:
    importlib.import_module(name)
print(sorted({{"torch", "tensorrt", "onnx", "onnxruntime"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
