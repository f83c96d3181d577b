"""A graph that refuses too many frames by itself, in real onnxruntime."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.frame_bound import bound_frames
from dfer_deploy.export.pipeline import export_to_folder

REFUSED = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(params=["image_encoder_onnx", "temporal_head_onnx"])
def graphs(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> tuple[Path, Path]:
    """A graph as it is exported for other targets, and the same with the bound."""
    plain: Path = getattr(bundle, request.param)
    bounded = Path(shutil.copyfile(plain, tmp_path / "bounded.onnx"))
    bound_frames(bounded, 16)
    return plain, bounded


def inputs(opened: onnxruntime.InferenceSession, batch: int, time: int) -> dict[str, np.ndarray]:
    (tensor,) = opened.get_inputs()
    shape = [batch, time, *tensor.shape[2:]]
    values = np.random.default_rng(0).integers(0, 256, shape)
    return {tensor.name: values.astype(np.uint8 if tensor.type == "tensor(uint8)" else np.float32)}


@pytest.mark.parametrize("time", [1, 2, 9, 15, 16])
def test_what_is_allowed_is_answered_to_the_bit(graphs: tuple[Path, Path], time: int) -> None:
    plain, bounded = map(session, graphs)
    sent = inputs(plain, 3, time)
    for one, other in zip(plain.run(None, sent), bounded.run(None, sent), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("time", [0, 17, 31, 32, 33, 4000])
def test_everything_else_is_refused_before_it_costs_memory(graphs: tuple[Path, Path], time: int) -> None:
    bounded = session(graphs[1])
    sent = inputs(bounded, 1, time)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(REFUSED):
        bounded.run(None, sent)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_the_target_onnxruntime_has_the_bound(own_checkpoint: Path, tmp_path: Path) -> None:
    exported, _ = export_to_folder(own_checkpoint, tmp_path / "b", ExportOptions("onnxruntime"))
    for path in (exported.image_encoder_onnx, exported.temporal_head_onnx):
        opened = session(path)
        opened.run(None, inputs(opened, 2, 16))
        with pytest.raises(REFUSED, match="must have 1 to 16 in the dimension T"):
            opened.run(None, inputs(opened, 1, 17))


def test_the_bytes_are_the_same_each_time(graphs: tuple[Path, Path], bundle: Bundle, tmp_path: Path) -> None:
    plain, bounded = graphs
    again = Path(shutil.copyfile(plain, tmp_path / "again.onnx"))
    bound_frames(again, 16)
    assert again.read_bytes() == bounded.read_bytes()
