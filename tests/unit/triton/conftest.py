"""The Python-backend model where Triton finds it."""

from __future__ import annotations

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
    path.write_text(triton_models.onnx_model_source())
    return path
