"""What the benchmark of live streams compares, and what it counts."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from streaming import FRAMES_A_TURN, Turn, largest_error, streamed, take_turns
from tiny import clips_of, tiny_model

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.client import Client
from dfer_deploy.export.export_options import ExportOptions
from dfer_deploy.export.pipeline import export_to_folder
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.triton.environment import TritonEnvironment


@pytest.fixture(scope="module")
def clients(environment: TritonEnvironment, bundle: Bundle) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        url = stack.enter_context(served_bundle(bundle)).grpc_url
        yield [stack.enter_context(Client(url)) for _ in range(3)]


def test_streams_that_answer_otherwise_than_the_graphs_are_not_timed(
    clients: list[Client], bundle: Bundle, tmp_path: Path
) -> None:
    frames = clips_of(2).reshape(-1, 32, 32, 3)
    with OnnxRuntimePredictor.from_bundle(bundle) as graphs:
        assert largest_error(clients[0], graphs, frames) < 1e-4
    save_checkpoint(tmp_path / "other.pt", tiny_model(seed=5), {})
    other = export_to_folder(tmp_path / "other.pt", tmp_path / "other", ExportOptions("embedded"))[0]
    with OnnxRuntimePredictor.from_bundle(other) as graphs, pytest.raises(RuntimeError, match="the stream's logits"):
        largest_error(clients[0], graphs, frames)


def test_every_answer_of_every_stream_counts(clients: list[Client]) -> None:
    turn = streamed(clients, clips_of(2).reshape(-1, 32, 32, 3))
    assert len(turn.waits) == FRAMES_A_TURN // 3 * 3
    # Each of three streams waits for its own answers only.
    assert turn.rate > len(turn.waits) / sum(turn.waits)


def test_every_round_begins_with_another_contestant() -> None:
    order: list[str] = []

    def contestant(name: str) -> Turn:
        order.append(name)
        return Turn(float(len(order)), [0.1])

    turns = take_turns({name: lambda n=name: contestant(n) for name in "ab"}, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [turn.rate for turn in turns["a"]] == [3, 6]
    assert [turn.rate for turn in turns["b"]] == [4, 5]
