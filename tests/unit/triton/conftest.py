"""The Python-backend model where Triton finds it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import python_backend

from dfer_deploy import triton_models
from dfer_deploy.triton import environment


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.py where Triton finds it, with a fake of Triton's module and a cache folder of its own."""
    python_backend.install(monkeypatch)
    monkeypatch.setenv(environment.CACHE_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "1" / "model.py"
    path.parent.mkdir()
    for name, text in triton_models.onnx_model_sources().items():
        (path.parent / name).write_text(text)
    monkeypatch.syspath_prepend(str(path.parent))  # as Triton does it
    monkeypatch.delitem(sys.modules, "model_requests", raising=False)
    return path
