"""The engine runner: right answers at every shape, graphs, tensors without copies, limits, release."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfer_deploy.errors import EngineError, RuntimeUnavailableError, SettingError
from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.tensorrt_engine import MAX_GRAPHS
from dfer_deploy.runtimes.tensorrt_predictor import TensorRtPredictor
from dfer_deploy.runtimes.torch_predictor import TorchPredictor
from dfer_deploy.verification.limits import LIMITS

pytestmark = pytest.mark.gpu

MAX_BATCH = 8


@pytest.mark.parametrize("frames", [1, 9, 16])
@pytest.mark.parametrize("batch", [1, 2, MAX_BATCH])
@pytest.mark.parametrize("cuda_graphs", [False, True], ids=["eager", "graphs"])
def test_answers_are_pytorchs(built: Any, pytorch: TorchPredictor, batch: int, frames: int, cuda_graphs: bool) -> None:
    limits = LIMITS[built.precision]
    clips = built.clips(batch, frames)
    features = pytorch.encode(clips)
    expected = pytorch.classify(features)
    with built.predictor(cuda_graphs=cuda_graphs) as predictor:
        for _ in range(3):  # the run before the capture, and two replays
            whole, head, encoded = predictor.predict(clips), predictor.classify(features), predictor.encode(clips)
            assert encoded.shape == features.shape
            assert encoded.dtype == np.float32
            for answer, limit in ((whole, limits.logits), (head, limits.head_logits)):
                assert answer.logits.shape == expected.logits.shape
                assert np.isfinite(answer.logits).all()
                assert np.abs(answer.logits - expected.logits).max() <= limit
                assert np.abs(answer.probabilities - softmax(answer.logits)).max() <= limits.probabilities


def test_a_replayed_graph_answers_what_the_launches_answer(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for other clips than those that were there when it was captured; and nothing is launched any more."""
    clips = built.clips(4)
    with built.predictor(cuda_graphs=True) as graphs, built.predictor(cuda_graphs=False) as eager:
        for index in (0, 1, 2, 3, 0):
            clip = clips[index : index + 1]
            np.testing.assert_array_equal(graphs.predict(clip).logits, eager.predict(clip).logits)
            for runner in (graphs._encoder, graphs._head):
                monkeypatch.setattr(runner, "_execute", None)
        assert [shape for shape, _ in graphs._encoder._captured] == [clips[:1].shape]
        assert len(graphs._head._captured) == 1
        assert eager._encoder._captured == {}


def test_shapes_take_turns_and_graphs_are_bounded(tiny_built: Any) -> None:
    shapes = [(batch, frames) for batch in (1, 2, 3, 5) for frames in (16, 9, 1)]
    assert len(shapes) > MAX_GRAPHS
    with tiny_built.predictor(cuda_graphs=True) as graphs, tiny_built.predictor(cuda_graphs=False) as eager:
        for _ in range(2):
            for batch, frames in shapes:
                clips = tiny_built.clips(batch, frames)
                np.testing.assert_array_equal(graphs.predict(clips).logits, eager.predict(clips).logits)
        assert len(graphs._encoder._captured) == MAX_GRAPHS


def test_more_clips_than_the_engines_take_go_in_pieces(tiny_built: Any, tensorrt: TensorRtPredictor) -> None:
    clips = tiny_built.clips(2 * MAX_BATCH + 1)
    whole = tensorrt.predict(clips)
    features = tensorrt.encode(clips)
    head = tensorrt.classify(features)
    assert whole.logits.shape == (2 * MAX_BATCH + 1, 3)
    for start in range(0, len(clips), MAX_BATCH):
        piece = slice(start, start + MAX_BATCH)
        np.testing.assert_array_equal(whole.logits[piece], tensorrt.predict(clips[piece]).logits)
        np.testing.assert_array_equal(head.logits[piece], tensorrt.classify(features[piece]).logits)


@pytest.mark.parametrize("stays", [False, True])
def test_tensors_go_in_and_out_without_copies(tiny_built: Any, tensorrt: TensorRtPredictor, stays: bool) -> None:
    clips = tiny_built.clips(4)
    expected = tensorrt.predict(clips)
    frames = torch.from_numpy(clips).cuda()
    tensorrt.predict_tensors(frames, stays=stays)
    before, places = torch.cuda.memory_allocated(), set()
    for _ in range(3):
        logits, probabilities = tensorrt.predict_tensors(frames, stays=stays)
        places.add((logits.data_ptr(), probabilities.data_ptr()))
        np.testing.assert_array_equal(logits.cpu().numpy(), expected.logits)
        np.testing.assert_array_equal(probabilities.cpu().numpy(), expected.probabilities)
    assert len(places) == 1
    assert torch.cuda.memory_allocated() == before
    assert ((tuple(frames.shape), frames.data_ptr()) in tensorrt._encoder._captured) == stays


def test_it_waits_for_the_callers_stream_and_the_caller_for_it(tiny_built: Any, tensorrt: TensorRtPredictor) -> None:
    clips = tiny_built.clips(2)
    expected = tensorrt.predict(clips).logits
    frames = torch.from_numpy(clips).cuda()
    stream = torch.cuda.Stream()
    for _ in range(5):
        late = torch.zeros_like(frames)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late.copy_(frames)
            logits = tensorrt.predict_tensors(late)[0].clone()
            late.zero_()  # behind the engines' reading
        stream.synchronize()
        np.testing.assert_array_equal(logits.cpu().numpy(), expected)


def test_tensors_that_do_not_fit_are_refused_in_words(tiny_built: Any, tensorrt: TensorRtPredictor) -> None:
    frames = torch.from_numpy(tiny_built.clips(3)).cuda()
    padded = torch.zeros(frames.numel() + 1, dtype=torch.uint8, device=frames.device)
    for tensor, message in (
        (frames.cpu(), "on cpu, expected uint8 on cuda"),
        (frames.float(), "torch.float32"),
        (frames.transpose(2, 3), "not contiguous"),
        (padded[1:].view(frames.shape), "multiple of 256 bytes"),
        (frames[:0], "engine was built for"),
        (frames.repeat(MAX_BATCH, 1, 1, 1, 1), f"to [{MAX_BATCH}, 16"),
        (frames.repeat(1, 2, 1, 1, 1), f"to [{MAX_BATCH}, 16"),
    ):
        with pytest.raises(SettingError) as caught:
            tensorrt.predict_tensors(tensor)
        assert message in str(caught.value)
    with pytest.raises(SettingError, match="expected uint8; convert it"):
        tensorrt.predict(tiny_built.clips(1).astype(np.float32))
    with pytest.raises(SettingError, match="engine was built for"):
        tensorrt.predict(tiny_built.clips(1)[:0])
    assert tensorrt.predict(tiny_built.clips(1)).logits.shape == (1, 3), "it still answers"


def test_threads_take_turns(tiny_built: Any, tensorrt: TensorRtPredictor) -> None:
    clips = tiny_built.clips(4)
    expected = [tensorrt.predict(clips[index : index + 1]).logits for index in range(4)]
    right = [0] * len(clips)

    def ask(index: int) -> None:
        for _ in range(50):
            answer = tensorrt.predict(clips[index : index + 1])
            right[index] += np.array_equal(answer.logits, expected[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [50] * 4


def test_everything_is_released(tiny_built: Any) -> None:
    free, allocated = [], []
    for _ in range(4):
        with tiny_built.predictor() as predictor:
            predictor.predict(tiny_built.clips(2))
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
        free.append(torch.cuda.mem_get_info()[0])
    assert len(set(allocated)) == 1
    assert free[-1] >= free[1] - (4 << 20), "a tiny engine holds less than 4 MiB, which must not add up"


def test_plans_that_are_no_engine_of_this_model_are_refused(trt: Any, tiny_built: Any, tmp_path: Path) -> None:
    encoder, head = tiny_built.plans
    with pytest.raises(RuntimeUnavailableError, match="engine of another model"):
        TensorRtPredictor(head, encoder, tiny_built.contract)
    truncated = tmp_path / "truncated.plan"
    truncated.write_bytes(encoder.read_bytes()[:1000])
    with pytest.raises(EngineError, match=rf"truncated\.plan cannot be loaded by TensorRT {trt.__version__}"):
        TensorRtPredictor(truncated, head, tiny_built.contract)
    with tiny_built.predictor() as predictor:
        assert predictor.predict(tiny_built.clips(1)).logits.shape == (1, 3), "the refused ones leave nothing behind"
