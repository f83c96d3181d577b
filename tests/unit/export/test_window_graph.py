"""The graph of a stream's window: which features it takes, whatever a client sends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import tiny_spec

from dfer_deploy.clips.sampling import padded
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.parity import check_window
from dfer_deploy.export.window_graph import WindowGraph
from dfer_deploy.specs import GraphSpec, contract_for, encoder_id

WIDTH, ID = 64, encoder_id("7f" * 32)


@pytest.fixture(scope="module")
def spec() -> GraphSpec:
    return contract_for(tiny_spec()).window


@pytest.fixture(scope="module")
def exported(spec: GraphSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("window") / "window.onnx"
    onnx_from_graph(WindowGraph(16, ID), spec, path)
    return path


def test_the_window_is_the_recent_frames_and_then_the_newest_repeated(exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(0).standard_normal((16, WIDTH)).astype(np.float32)
    for count in (*range(16), -1, -(2**31), 16, 2**31 - 1):
        used = min(max(count, 0), 15)
        recent = np.full((1, 15, WIDTH), np.nan, np.float32)
        recent[0, :used] = frames[:used]
        window, ids = session.run(
            ["window_features", "encoder_id"],
            {"frame_features": frames[None, 15:], "recent_features": recent, "recent_count": np.int32([[count]])},
        )
        np.testing.assert_array_equal(window[0], padded([*frames[:used], frames[15]]))
        assert (ids.dtype, ids.tolist()) == (np.int32, [[ID]])


def test_the_streams_of_a_batch_do_not_mix(exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    batch = {
        "frame_features": random.standard_normal((5, 1, WIDTH)).astype(np.float32),
        "recent_features": random.standard_normal((5, 15, WIDTH)).astype(np.float32),
        "recent_count": np.int32([[0], [15], [3], [-2], [99]]),
    }
    together = session.run(None, batch)
    for row in range(5):
        alone = session.run(None, {name: values[row : row + 1] for name, values in batch.items()})
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_of_them[row])


def test_the_id_is_made_of_the_encoders_hash() -> None:
    ids = {encoder_id(digest * 32) for digest in ("00", "7f", "80", "ff")}
    assert len(ids) == 4
    assert all(1 <= number < 2**31 for number in ids)
    assert encoder_id("0" * 64) == 1
    # All of the first 31 bits count: two encoders are taken for one in one of 2 billion pairs.
    for place in range(8):
        digits = list("1" * 64)
        digits[place] = "3"
        assert encoder_id("".join(digits)) != encoder_id("1" * 64)


class WithoutClamp(WindowGraph):
    """Takes a negative count from the end."""

    def forward(self, frame_features, recent_features, recent_count):  # type: ignore[no-untyped-def]
        return super().forward(frame_features, recent_features, torch.remainder(recent_count, 16))


class Multiplied(WindowGraph):
    """Multiplies instead of choosing, so that NaN spreads."""

    def forward(self, frame_features, recent_features, recent_count):  # type: ignore[no-untyped-def]
        used = (self.places < recent_count)[..., None].float()
        window = used * recent_features + (1 - used) * frame_features
        return torch.cat([window, frame_features], dim=1), self.of_encoder.expand(recent_count.shape[0], 1)


@pytest.mark.parametrize("graph", [WithoutClamp(16, ID), Multiplied(16, ID), WindowGraph(16, ID + 1)])
def test_the_export_sees_a_wrong_graph(graph: WindowGraph, spec: GraphSpec, exported: Path, tmp_path: Path) -> None:
    check_window(exported, spec, ID)
    onnx_from_graph(graph, spec, tmp_path / "wrong.onnx")
    with pytest.raises(RuntimeError):
        check_window(tmp_path / "wrong.onnx", spec, ID)


def test_the_same_bytes_every_time(spec: GraphSpec, exported: Path, tmp_path: Path) -> None:
    onnx_from_graph(WindowGraph(16, ID), spec, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
