"""Fixtures that every suite shares."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Tiny models gain nothing from a second thread, which costs much while another process of tests needs the core. Before
# torch is imported, so that also the processes that tests start have it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from click.testing import CliRunner
from PIL import ImageDraw
from tiny import clips_of, tiny_model, write_frames

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.checkpoints.checkpoint import FRAME_INTERVAL, save_checkpoint
from dfer_deploy.cli import group
from dfer_deploy.errors import DferDeployError
from dfer_deploy.triton.environment import TritonEnvironment, check_platform, triton_environment
from dfer_deploy.triton.interpreter import choose_interpreter

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def own_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, tiny_model(), {"note": "random weights", FRAME_INTERVAL: 0.1})
    return path


@pytest.fixture(scope="session")
def bundle(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model exported in fp32 for the embedded server. Not to be changed by a test."""
    from dfer_deploy.export.pipeline import ExportOptions, export_bundle

    return export_bundle(own_checkpoint, tmp_path_factory.mktemp("bundle") / "tiny", ExportOptions("embedded"))[0]


@pytest.fixture(scope="session")
def clip_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips in frame folders with an annotation list."""
    root = tmp_path_factory.mktemp("clips")
    lines = []
    for index, clip in enumerate(clips_of(12)):
        write_frames(root / f"{index:03d}", clip)
        lines.append(f"{index:03d} 16 {index % 3}")
    path = root / "list.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def cli() -> Callable[..., Any]:
    """Calls the command line in this process and returns click's result."""
    return lambda *args: CliRunner().invoke(group, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A checkpoint that the reference implementation itself wrote, with its answers; not part of a clone."""
    if not SHARED.is_dir():
        pytest.skip("the reference implementation's own checkpoint is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def environment() -> TritonEnvironment:
    """The embedded server's environment; skips where the machine has no Python or C library that it could run with."""
    try:
        check_platform(sys.platform, platform.machine(), platform.libc_ver())
        choose_interpreter()
    except DferDeployError as error:
        pytest.skip(str(error))
    return triton_environment()


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Pillow writes into pictures."""
    written: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def watched(self: ImageDraw.ImageDraw, place: object, text: str, **options: object) -> None:
        written.append(text)
        draw(self, place, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", watched)
    return written
