"""The Python-backend model, with Triton's module replaced by a few lines."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from python_backend import Request, Response, TritonError

from dfer_deploy.export.onnx_file import onnx_from_graph
from dfer_deploy.export.window_graph import WindowGraph
from dfer_deploy.specs import GraphSpec, TensorSpec

FEATURES = 3


def features(batch: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, time, FEATURES)).astype(np.float32)


@pytest.fixture
def model(source: Path, tmp_path: Path):
    """A loaded model whose graph gives ``double`` = 2 x and ``last`` = the last frame, for features [B, T, 3]."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["double"]),
            helper.make_node("Gather", ["x", "end"], ["last"], axis=1),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", FEATURES])],
        [
            helper.make_tensor_value_info("double", TensorProto.FLOAT, ["batch", "time", FEATURES]),
            helper.make_tensor_value_info("last", TensorProto.FLOAT, ["batch", FEATURES]),
        ],
        [numpy_helper.from_array(np.array(2, np.float32), "two"), numpy_helper.from_array(np.array(-1), "end")],
    )
    saved = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(saved, tmp_path / "1" / "model.onnx")
    loaded = runpy.run_path(str(source))["TritonPythonModel"]()
    config = {
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", str(FEATURES)]}],
        "output": [{"name": "last"}, {"name": "double"}],
        "max_batch_size": 8,
        "parameters": {
            "max_frames": {"string_value": "5"},
            "intra_op_threads": {"string_value": "1"},
            "spin_us": {"string_value": "0"},
            "clips_per_run": {"string_value": "0"},
            "must_be_finite": {"string_value": "1"},
        },
    }
    loaded.initialize({"model_config": json.dumps(config), "model_repository": str(tmp_path), "model_version": "1"})
    return loaded


@pytest.fixture
def window(source: Path, tmp_path: Path):
    """A loaded model of three inputs, which need not be finite: the window of a stream, of 5 frames."""
    spec = GraphSpec(
        "window",
        (
            TensorSpec("newest", "float32", ("batch", 1, FEATURES)),
            TensorSpec("recent", "float32", ("batch", 4, FEATURES)),
            TensorSpec("count", "int32", ("batch", 1)),
        ),
        (TensorSpec("window", "float32", ("batch", 5, FEATURES)), TensorSpec("id", "int32", ("batch", 1))),
    )
    onnx_from_graph(WindowGraph(5, 77), spec, tmp_path / "1" / "model.onnx")
    types = {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}
    parameters = {"max_frames": 5, "intra_op_threads": 1, "spin_us": 100, "clips_per_run": 0, "must_be_finite": 0}
    config = {
        "input": [
            {"name": tensor.name, "data_type": types[tensor.dtype], "dims": list(map(str, tensor.shape[1:]))}
            for tensor in spec.inputs
        ],
        "output": [{"name": "id"}, {"name": "window"}],
        "max_batch_size": 8,
        "parameters": {name: {"string_value": str(value)} for name, value in parameters.items()},
    }
    loaded = runpy.run_path(str(source))["TritonPythonModel"]()
    loaded.initialize({"model_config": json.dumps(config), "model_repository": str(tmp_path), "model_version": "1"})
    return loaded


def step(count: int, seed: int, batch: int = 1) -> dict[str, np.ndarray]:
    """A request of ``batch`` streams that have had ``count`` frames; unused rows are NaN."""
    recent = features(batch, 4, seed)
    recent[:, count:] = np.nan
    return {"newest": features(batch, 1, 100 + seed), "recent": recent, "count": np.full((batch, 1), count, np.int32)}


def check_window(response: Response, sent: dict[str, np.ndarray]) -> None:
    count = int(sent["count"][0, 0])
    window = response.value("window")
    np.testing.assert_array_equal(window[:, :count], sent["recent"][:, :count])
    np.testing.assert_array_equal(window[:, count:], np.repeat(sent["newest"], 5 - count, axis=1))
    np.testing.assert_array_equal(response.value("id"), np.full((len(window), 1), 77))


def test_graphs_of_several_inputs_run_requests_together(window) -> None:
    sent = [step(0, 1), step(4, 2, batch=2), step(2, 3), step(1, 4, batch=3)]
    batches: list[list[int]] = []
    run = window._run

    def counting(batch: list[np.ndarray]) -> list[np.ndarray]:
        batches.append([len(array) for array in batch])
        return run(batch)  # type: ignore[no-any-return]

    window._run = counting
    for response, request in zip(window.execute([Request(tensors) for tensors in sent]), sent, strict=True):
        check_window(response, request)
    assert batches == [[7, 7, 7]]


@pytest.mark.parametrize("clips_per_run", [1, 2])
def test_all_inputs_are_run_a_few_streams_at_a_time(window, clips_per_run: int) -> None:
    sent = {name: np.concatenate([step(count, 5)[name] for count in range(5)]) for name in step(0, 0)}
    session = window._session

    class Small:
        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert {len(array) for array in feeds.values()} == {len(next(iter(feeds.values())))}
            return session.run(names, feeds)  # type: ignore[no-any-return]

    window._session = Small()
    window._clips_at_once = lambda frames: clips_per_run
    (response,) = window.execute([Request(sent)])
    for row in range(5):
        count = int(sent["count"][row, 0])
        np.testing.assert_array_equal(response.value("window")[row, :count], sent["recent"][row, :count])
        np.testing.assert_array_equal(
            response.value("window")[row, count:], np.repeat(sent["newest"][row], 5 - count, 0)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"recent": None},
        {"recent": features(1, 3)},
        {"recent": features(2, 4)},
        {"count": np.zeros((1, 1), np.int64)},
        {"count": np.zeros((1, 2), np.int32)},
        {"count": np.zeros((1,), np.int32)},
    ],
    ids=["missing", "rows", "batch", "dtype", "width", "rank"],
)
def test_a_bad_input_among_several_harms_nobody(window, changes: dict[str, Any]) -> None:
    good = step(2, 1)
    bad = {name: array for name, array in (step(2, 2) | changes).items() if array is not None}
    first, refused, last = window.execute([Request(good), Request(bad), Request(good)])
    check_window(first, good)
    check_window(last, good)
    assert refused.error.code == TritonError.INVALID_ARG


def counted(model) -> list[tuple[int, ...]]:
    """The shapes that the graph is run with from now on."""
    shapes: list[tuple[int, ...]] = []
    run: Callable[[list[np.ndarray]], list[np.ndarray]] = model._run

    def counting(batch: list[np.ndarray]) -> list[np.ndarray]:
        shapes.append(batch[0].shape)
        return run(batch)

    model._run = counting
    return shapes


def check(response: Response, array: np.ndarray) -> None:
    np.testing.assert_array_equal(response.value("double"), 2 * array)
    np.testing.assert_array_equal(response.value("last"), array[:, -1])


def test_requests_of_equal_shape_run_together(model) -> None:
    arrays = [features(2, 4, 1), features(1, 5, 2), features(3, 4, 3), features(1, 4, 4)]
    shapes = counted(model)
    responses = model.execute([Request({"x": array}) for array in arrays])
    assert sorted(shapes) == [(1, 5, FEATURES), (6, 4, FEATURES)]
    for response, array in zip(responses, arrays, strict=True):
        check(response, array)


def test_clips_that_run_one_by_one_are_not_joined_before(model) -> None:
    model._clips_per_run = 1
    arrays = [features(2, 4, 1), features(1, 4, 2)]
    shapes = counted(model)
    responses = model.execute([Request({"x": array}) for array in arrays])
    assert shapes == [(2, 4, FEATURES), (1, 4, FEATURES)]
    for response, array in zip(responses, arrays, strict=True):
        check(response, array)


@pytest.mark.parametrize("clips_per_run", [1, 2, 4])
def test_a_batch_may_be_run_a_few_clips_at_a_time(model, clips_per_run: int) -> None:
    model._clips_per_run = clips_per_run
    session, sizes = model._session, []

    class Counting:
        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            sizes.append(len(feeds["x"]))
            return session.run(names, feeds)

    model._session = Counting()
    arrays = [features(2, 5, 1), features(3, 5, 2)]
    responses = model.execute([Request({"x": array}) for array in arrays])
    assert max(sizes) == clips_per_run
    assert sum(sizes) == 5
    for response, array in zip(responses, arrays, strict=True):
        check(response, array)
    # Single frames, as streams send them: as many as are in so many clips.
    sizes.clear()
    model.execute([Request({"x": features(1, 1, seed)}) for seed in range(7)])
    assert sizes == {1: [5, 2], 2: [7], 4: [7]}[clips_per_run]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "the input 'x' is missing"),
        ({"x": features(1, 6)}, "'x' has 6 frames a clip, expected 1 to 5"),
        ({"x": features(1, 0)}, "'x' has 0 frames a clip, expected 1 to 5"),
        ({"x": features(0, 4)}, "'x' holds no clip"),
        ({"x": features(1, 4)[..., :2]}, "'x' has the shape [1, 4, 2], expected [B, T, 3] of float32"),
        ({"x": features(1, 4)[0]}, "'x' has the shape [4, 3], expected [B, T, 3] of float32"),
        ({"x": features(1, 4).astype(np.float64)}, "'x' has the dtype float64, expected [B, T, 3] of float32"),
        ({"x": features(1, 4) * np.float32(np.nan)}, "'x' holds values that are not finite"),
        ({"x": features(1, 4) + np.float32(np.inf)}, "'x' holds values that are not finite"),
    ],
)
def test_a_bad_request_gets_its_error_and_harms_nobody(model, tensors: dict[str, np.ndarray], said: str) -> None:
    good = [features(2, 4, 1), features(1, 4, 2)]
    first, bad, last = model.execute([Request({"x": good[0]}), Request(tensors), Request({"x": good[1]})])
    check(first, good[0])
    check(last, good[1])
    assert said in str(bad.error)
    assert bad.error.code == TritonError.INVALID_ARG
    assert bad.output_tensors == []


def test_when_a_batch_fails_every_request_is_tried_alone(model) -> None:
    run = model._run

    def failing(batch: list[np.ndarray]) -> list[np.ndarray]:
        if (batch[0] == 7).any():
            raise MemoryError("out of memory")
        return run(batch)

    model._run = failing
    good, bad = features(1, 4), np.full((1, 4, FEATURES), 7, np.float32)
    first, second, third = model.execute([Request({"x": array}) for array in (good, bad, good)])
    check(first, good)
    check(third, good)
    assert str(second.error) == "MemoryError: out of memory"
    assert second.error.code == TritonError.INTERNAL


def test_more_clips_than_a_batch_fall_back_to_single_requests(model) -> None:
    arrays = [features(5, 4, 1), features(5, 4, 2)]
    for response, array in zip(model.execute([Request({"x": array}) for array in arrays]), arrays, strict=True):
        check(response, array)


def test_a_request_that_cannot_be_read_is_an_error_too(model) -> None:
    class Broken:
        @property
        def tensors(self) -> dict[str, np.ndarray]:
            raise RuntimeError("shared memory is gone")

    broken, good = model.execute([Broken(), Request({"x": features(1, 4)})])
    assert str(broken.error) == "RuntimeError: shared memory is gone"
    check(good, features(1, 4))
