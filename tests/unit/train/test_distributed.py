"""Two processes over gloo train what one trains with the joint batch, and none waits for one that is gone."""

from __future__ import annotations

import signal
import socket
from dataclasses import replace
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch
from training_runs import train_as_rank, weights_of

from dfer_deploy.errors import DferDeployError
from dfer_deploy.train.distributed import training_processes
from dfer_deploy.train.loop import train
from dfer_deploy.train.recipe import Recipe


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def started(
    processes: ForkServerContext, recipe: Recipe, output: Path, dies_at: int | None = None
) -> list[ForkServerProcess]:
    """Two ranks; the last one dies at the given step, if any. Their errors go beside ``output``."""
    port = free_port()
    ranks = [
        processes.Process(
            target=train_as_rank,
            args=(rank, 2, port, recipe, output, output.with_suffix(f".{rank}"), dies_at if rank else None),
        )
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    return ranks


@pytest.fixture
def uneven(recipe: Recipe) -> Recipe:
    """28 clips in batches of 9: the last batch has one clip, so that the second process has none."""
    optim = replace(
        recipe.optim,
        name="sgd",
        lr_image_encoder=1e-2,
        lr_temporal=1e-2,
        lr_prompts=1e-2,
        epochs=2,
        batch_size=9,
        accumulate=2,
        ema_decay=0.6,
        short_epochs=1,
        label_smoothing=0.1,
        clip_norm=None,  # it would hide a factor on the gradients
    )
    return replace(recipe, optim=optim, run=replace(recipe.run, save_every_s=0.0))


def test_two_processes_give_what_one_gives(uneven: Recipe, processes: ForkServerContext, tmp_path: Path) -> None:
    one = train(uneven, tmp_path / "one")
    ranks = started(processes, uneven, tmp_path / "two")
    assert [rank.exitcode for rank in ranks] == [0, 0]
    two = train(uneven, tmp_path / "two")  # finished: the result is read
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert [entry["train_war"] for entry in two.history] == [entry["train_war"] for entry in one.history]
    ours, theirs = weights_of(one.checkpoint), weights_of(two.checkpoint)
    untrained = replace(uneven, optim=replace(uneven.optim, lr_image_encoder=0.0, lr_temporal=0.0, lr_prompts=0.0))
    start = weights_of(train(untrained, tmp_path / "start").checkpoint)
    moved = max(float((ours[name] - start[name]).abs().max()) for name in ours)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4 * moved


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on_later(
    uneven: Recipe, processes: ForkServerContext, tmp_path: Path
) -> None:
    survivor, dead = started(processes, uneven, tmp_path / "run", dies_at=6)
    assert (survivor.exitcode, dead.exitcode) == (2, -signal.SIGKILL)
    message = (tmp_path / "run.0").read_text()
    assert message.startswith("another process of this training ended or cannot be reached")
    assert [rank.exitcode for rank in started(processes, uneven, tmp_path / "run")] == [0, 0]
    assert [rank.exitcode for rank in started(processes, uneven, tmp_path / "whole")] == [0, 0]
    ours, theirs = weights_of(tmp_path / "run" / "last.pt"), weights_of(tmp_path / "whole" / "last.pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_mistake_that_the_first_process_finds_is_told_by_both(
    uneven: Recipe, processes: ForkServerContext, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes(b"no state")
    assert [rank.exitcode for rank in started(processes, uneven, tmp_path / "run")] == [2, 2]
    assert (tmp_path / "run.0").read_text() == (tmp_path / "run.1").read_text()
    assert "no torch checkpoint" in (tmp_path / "run.0").read_text()


def test_alone_nothing_is_joined() -> None:
    with training_processes("cpu") as processes:
        assert (processes.rank, processes.world, processes.device.type) == (0, 1, "cpu")
        assert processes.sums([1.5, 2]) == [1.5, 2]
        assert processes.from_first(lambda: 3) == 3
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_absent_device_is_named() -> None:
    with pytest.raises(DferDeployError, match="no CUDA device"), training_processes("cuda"):
        pass
