"""The Python-backend model that remembers streams, with Triton's module replaced by a few lines."""

from __future__ import annotations

import json
import runpy
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import python_backend
from onnx import TensorProto, helper, numpy_helper
from python_backend import END, START, Request, Response, TritonError

from dfer_deploy import triton_models

FEATURES, FRAMES, STREAMS = 3, 5, 4
WEIGHTS = np.array([1, 10, 100, 1000, 10000], np.float32)


def frame(
    stream: int | str, value: float, flags: int = 0, shape: tuple[int, ...] = (1, 1, FEATURES), dtype: Any = np.float32
) -> Request:
    """A request whose features are all ``value``."""
    return Request({"frame_features": np.full(shape, value, dtype)}, stream, flags)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loaded model whose graph weighs every place of the window differently."""
    python_backend.install(monkeypatch)
    value = helper.make_tensor_value_info("frame_features", TensorProto.FLOAT, ["batch", FRAMES, FEATURES])
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["frame_features", "weights"], ["weighed"]),
            helper.make_node("ReduceSum", ["weighed", "axis"], ["logits"], keepdims=0),
        ],
        "graph",
        [value],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", FEATURES])],
        [numpy_helper.from_array(WEIGHTS[:, None], "weights"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    (tmp_path / "1").mkdir()
    saved = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(saved, tmp_path / "1" / "model.onnx")
    source = tmp_path / "1" / "model.py"
    source.write_text(triton_models.stream_head_source())
    config = {
        "input": [{"name": "frame_features", "data_type": "TYPE_FP32", "dims": ["1", str(FEATURES)]}],
        "output": [{"name": "logits"}],
        "max_batch_size": 8,
        "parameters": {
            name: {"string_value": value}
            for name, value in (
                ("max_frames", str(FRAMES)), ("max_streams", str(STREAMS)), ("intra_op_threads", "1"), ("spinning", "0")
            )
        },
    }  # fmt: skip
    loaded = runpy.run_path(str(source))["TritonPythonModel"]()
    loaded.initialize({"model_config": json.dumps(config), "model_repository": str(tmp_path), "model_version": "1"})
    return loaded


def answers(values: list[float]) -> float:
    """What the graph says about the window of the values so far."""
    window = values[-FRAMES:]
    window = window + window[-1:] * (FRAMES - len(window))
    return float(np.dot(WEIGHTS, np.array(window, np.float32)))


def check(response: Response, values: list[float]) -> None:
    np.testing.assert_array_equal(response.value("logits"), np.full((1, FEATURES), answers(values), np.float32))


def begin(model: Any, name: int | str, value: float = 1.0) -> None:
    check(model.execute([frame(name, value, START)])[0], [value])


def test_a_window_is_padded_with_the_newest_frame_and_then_slides(model: Any) -> None:
    for count in range(1, 3 * FRAMES):
        (response,) = model.execute([frame(7, count, START if count == 1 else 0)])
        check(response, [float(value) for value in range(1, count + 1)])


def test_streams_are_told_apart_and_run_together(model: Any) -> None:
    names: list[int | str] = [1, "1", 2**64 - 1, "a camera"]
    seen: dict[int | str, list[float]] = {name: [] for name in names}
    random = np.random.default_rng(0)
    sizes: list[int] = []
    run = model._run
    model._run = lambda streams: sizes.append(len(streams)) or run(streams)
    for step in range(40):
        chosen = [name for name in names if step == 0 or random.random() < 0.6]
        values = [float(random.integers(1, 9)) for _ in chosen]
        requests = [frame(name, value, 0 if seen[name] else START) for name, value in zip(chosen, values, strict=True)]
        for name, value, response in zip(chosen, values, model.execute(requests), strict=True):
            seen[name].append(value)
            check(response, seen[name])
        assert sum(sizes) == len(chosen)
        assert len(sizes) <= 1
        sizes.clear()


def test_start_begins_anew_and_end_forgets(model: Any) -> None:
    begin(model, 7, 5.0)
    begin(model, 7, 2.0)
    check(model.execute([frame(7, 3.0, END)])[0], [2.0, 3.0])
    assert not model._streams
    (refused,) = model.execute([frame(7, 4.0)])
    assert refused.error.code == TritonError.INVALID_ARG
    assert "the stream 7 has no frames here" in str(refused.error)
    check(model.execute([frame(7, 4.0, START | END)])[0], [4.0])
    assert not model._streams


def test_the_end_of_a_stream_and_the_next_one_of_its_name_may_come_together(model: Any) -> None:
    begin(model, 7, 1.0)
    begin(model, 8, 9.0)
    requests = [frame(7, 2.0, END), frame(8, 8.0), frame(7, 5.0, START), frame(7, 6.0, END)]
    for response, values in zip(model.execute(requests), ([1.0, 2.0], [9.0, 8.0], [5.0], [5.0, 6.0]), strict=True):
        check(response, values)
    assert list(model._streams) == [8]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": np.nan}, "holds values that are not finite"),
        ({"value": np.inf}, "holds values that are not finite"),
        ({"shape": (1, 2, FEATURES)}, "the shape [1, 2, 3], expected float32 [1, 1, 3]: one frame of one stream"),
        ({"shape": (1, 1, 2)}, "the shape [1, 1, 2]"),
        ({"shape": (2, 1, FEATURES)}, "the shape [2, 1, 3]"),
        ({"dtype": np.float64}, "the dtype float64"),
    ],
)
def test_a_refused_frame_harms_neither_its_stream_nor_another(model: Any, changes: dict[str, Any], said: str) -> None:
    begin(model, 1, 1.0)
    begin(model, 2, 2.0)
    bad, good = model.execute([frame(**{"stream": 1, "value": 3.0} | changes), frame(2, 4.0)])
    assert said in str(bad.error)
    assert bad.error.code == TritonError.INVALID_ARG
    check(good, [2.0, 4.0])
    check(model.execute([frame(1, 5.0)])[0], [1.0, 5.0])


def test_a_stream_whose_first_frame_was_refused_has_not_begun(model: Any) -> None:
    begin(model, 1)
    (refused,) = model.execute([frame(1, np.nan, START)])
    assert refused.error is not None
    (later,) = model.execute([frame(1, 2.0)])
    assert "its first one was refused" in str(later.error)
    begin(model, 1)
    model.execute([frame(1, np.nan, END)])
    assert not model._streams


def test_memory_is_bounded_and_the_stream_that_was_idle_longest_goes_first(model: Any) -> None:
    for name in range(STREAMS):
        begin(model, name)
    model.execute([frame(0, 2.0)])
    begin(model, "one more")
    assert set(model._streams) == {0, 2, 3, "one more"}
    (forgotten,) = model.execute([frame(1, 2.0)])
    assert "send the frames of its window again" in str(forgotten.error)
    for name in range(1000):
        begin(model, name)
        assert len(model._streams) == STREAMS
    # In one batch with a start, a stream with a frame is not the one that goes.
    for name in range(STREAMS):
        begin(model, name)
    _, still_there = model.execute([frame("new", 1.0, START), frame(0, 2.0)])
    check(still_there, [1.0, 2.0])


def test_a_stream_takes_its_window_and_little_more(model: Any) -> None:
    model._max_streams, width = 1000, 512
    model._width = width
    model._run = lambda streams: [np.zeros((len(streams), FEATURES), np.float32)]
    tracemalloc.start()
    for name in range(1000):
        model.execute([frame(name, 1.0, START, (1, 1, width))])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(model._streams) == 1000
    assert FRAMES * width * 4 < taken / 1000 < FRAMES * width * 4 + 1024


def test_when_a_batch_fails_every_stream_is_tried_alone_and_a_failure_changes_nothing(model: Any) -> None:
    for name in (1, 2):
        begin(model, name)
    run = model._run

    def failing(streams: list[Any]) -> list[np.ndarray]:
        if any((stream.window == 7).any() for stream in streams):
            raise MemoryError("out of memory")
        return run(streams)  # type: ignore[no-any-return]

    model._run = failing
    first, second = model.execute([frame(1, 7.0), frame(2, 2.0)])
    assert str(first.error) == "MemoryError: out of memory"
    assert first.error.code == TritonError.INTERNAL
    check(second, [1.0, 2.0])
    check(model.execute([frame(1, 3.0)])[0], [1.0, 3.0])
