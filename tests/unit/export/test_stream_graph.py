"""The graph of a live stream: its loop through onnxruntime answers as the model does for every window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny import tiny_model

from dfer_deploy.errors import DferDeployError
from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.parity import measure_stream_parity
from dfer_deploy.export.stream_graph import StreamHeadGraph
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.runtimes.torch import TorchPredictor
from dfer_deploy.specs import Precision, contract_for, stream_state_graph


def exported(model: DferClip, path: Path, precision: Precision = "fp32") -> Path:
    with torch.inference_mode():
        graph = StreamHeadGraph(model, precision)
    onnx_from_graph(graph, stream_state_graph(contract_for(model.spec).stream_head), path)
    return path


class Loop:
    """What a server does: keeps the state of B streams, and hands it over with every frame."""

    def __init__(self, path: Path, streams: int) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        # Of a fresh state nothing is known.
        self.state = np.full((streams, 16, 64), np.nan, np.float32)
        self.count = np.full((streams, 1), np.nan, np.float32)

    def push(self, frames: np.ndarray, starts: list[bool]) -> np.ndarray:
        logits, probabilities, self.state, self.count = self.session.run(
            ["logits", "probabilities", "state_out", "count_out"],
            {
                "frame_features": frames[:, None],
                "start": np.array(starts, np.float32)[:, None],
                "state_in": self.state,
                "count_in": self.count,
            },
        )
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        return logits  # type: ignore[no-any-return]


def window(frames: np.ndarray) -> np.ndarray:
    last = frames[-16:]
    return np.concatenate([last, np.repeat(last[-1:], 16 - len(last), axis=0)])


@pytest.mark.parametrize("changes", [{}, {"depth": 0}, {"depth": 2, "classifier": "linear"}], ids=str)
def test_every_window_of_interleaved_streams_is_answered_as_by_the_model(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(**changes)
    loop = Loop(exported(model, tmp_path / "stream.onnx"), streams=3)
    features = np.random.default_rng(0).standard_normal((3, 40, 64)).astype(np.float32)
    # One stream of 40 frames; one that restarts when its window is full, one that restarts before.
    starts = ({0}, {0, 23}, {0, 9})
    began = [0, 0, 0]
    with TorchPredictor(model) as predictor:
        for time in range(40):
            first = [time in start for start in starts]
            began = [time if is_first else old for is_first, old in zip(first, began, strict=True)]
            logits = loop.push(features[:, time], first)
            windows = np.stack([window(f[start : time + 1]) for f, start in zip(features, began, strict=True)])
            np.testing.assert_array_equal(loop.state, windows)
            np.testing.assert_array_equal(loop.count[:, 0], [min(16, time + 1 - start) for start in began])
            np.testing.assert_allclose(logits, predictor.classify(windows).logits, atol=1e-4, rtol=0)


def test_the_state_is_fp32_in_an_fp16_graph_and_the_names_sort_as_triton_pairs_them(tmp_path: Path) -> None:
    spec = stream_state_graph(contract_for(tiny_model().spec).stream_head)
    inputs = [tensor.name for tensor in spec.inputs if tensor.name.endswith("_in")]
    outputs = [tensor.name for tensor in spec.outputs if tensor.name.endswith("_out")]
    assert [name.removesuffix("_in") for name in sorted(inputs)] == [n.removesuffix("_out") for n in sorted(outputs)]
    model = onnx.load(exported(tiny_model(), tmp_path / "stream.onnx", "fp16"))
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert set(types.values()) == {onnx.TensorProto.FLOAT}
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_export_sees_a_graph_of_another_model(precision: Precision, tmp_path: Path) -> None:
    model = tiny_model()
    path = exported(model, tmp_path / "stream.onnx", precision)
    assert (
        0
        < measure_stream_parity(model, path, precision)["stream_logit_error"]
        <= {"fp32": 1e-4, "fp16": 0.1}[precision]
    )
    other = tiny_model()
    with torch.no_grad():
        other.temporal_net.blocks[0].mlp_out.weight.mul_(1.5)
    with pytest.raises(DferDeployError, match="the exported graph of a stream does not answer like PyTorch"):
        measure_stream_parity(other, path, precision)


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = (exported(tiny_model(), tmp_path / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second
