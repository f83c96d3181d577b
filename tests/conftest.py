"""Fixtures that every suite shares."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Tiny models gain nothing from a second thread, which costs much while another process of tests needs the core. Before
# torch is imported, so that also the processes that tests start have it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from click.testing import CliRunner
from PIL import ImageDraw
from tiny import clips_of, tiny_model, write_frames

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.checkpoints.checkpoint import FRAME_INTERVAL, save_checkpoint
from dfer_deploy.cli import group
from dfer_deploy.errors import DferDeployError
from dfer_deploy.specs import GraphSpec
from dfer_deploy.triton.environment import TritonEnvironment, check_platform, triton_environment
from dfer_deploy.triton.interpreter import choose_interpreter

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def equal_graphs_are_exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps each ONNX file that a bundle or a search asks for, for all processes of this run.

    Torch's exporter takes seconds for the smallest graph, and tests export few different ones. The same module gives
    the same bytes: ``test_the_same_bytes_come_from_different_folders_and_processes`` proves it, and that it holds for
    what is kept here. A file is found by everything that its module holds; a module that cannot be pickled is exported
    anew. Tests of the exporter itself call it directly.
    """
    from dfer_deploy.export import bisection, bundle_folder, pipeline
    from dfer_deploy.export.onnx_file import onnx_from_graph

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported_graphs"
    folder.mkdir(exist_ok=True)

    def exported_once(graph: torch.nn.Module, spec: GraphSpec, path: Path) -> None:
        content = io.BytesIO()
        try:
            torch.save((graph, spec), content)
        except (AttributeError, pickle.PicklingError):
            onnx_from_graph(graph, spec, path)
            return
        kept = folder / f"{hashlib.sha256(content.getvalue()).hexdigest()}.onnx"
        if not kept.exists():
            onnx_from_graph(graph, spec, path)
            part = kept.with_suffix(f".{os.getpid()}")
            shutil.copyfile(path, part)
            part.replace(kept)
        shutil.copyfile(kept, path)

    with pytest.MonkeyPatch.context() as patch:
        for module in (bisection, bundle_folder, pipeline):
            patch.setattr(module, "onnx_from_graph", exported_once)
        yield


@pytest.fixture(scope="session")
def own_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, tiny_model(), {"note": "random weights", FRAME_INTERVAL: 0.1})
    return path


@pytest.fixture(scope="session")
def bundle(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model exported in fp32 for the embedded server. Not to be changed by a test."""
    from dfer_deploy.export.export_options import ExportOptions
    from dfer_deploy.export.pipeline import export_to_folder

    return export_to_folder(own_checkpoint, tmp_path_factory.mktemp("bundle") / "tiny", ExportOptions("embedded"))[0]


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
