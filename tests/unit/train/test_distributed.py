"""Two processes over gloo train what one trains with the joint batch, and none waits for one that is gone."""

from __future__ import annotations

import signal
import socket
from dataclasses import replace
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import train_as_rank, weights_of

from dfer_deploy.errors import TrainingError
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


@pytest.mark.slow
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
    assert "not a torch checkpoint" in (tmp_path / "run.0").read_text()


def test_what_two_processes_cannot_read_ends_both(
    uneven: Recipe, processes: ForkServerContext, root: Path, tmp_path: Path
) -> None:
    lines = (root / "train.txt").read_text().splitlines()
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "00001.png").write_bytes(b"no picture")
    where = [f"{root / line.split()[0]} {' '.join(line.split()[1:])}" for line in lines]
    (tmp_path / "train.txt").write_text("\n".join([f"{tmp_path / 'a'} 1 0", *where, f"{tmp_path / 'b'} 1 0"]) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(where) + "\n")
    model = replace(uneven.model, fast_start=False)
    data = replace(uneven.data, root=str(tmp_path))
    # Of 30 clips one may be unreadable. In one joint batch, each process has one of them: alone it would go on.
    recipe = replace(uneven, model=model, data=data, optim=replace(uneven.optim, batch_size=30))
    recipe = replace(recipe, run=replace(recipe.run, seed=seed_that_parts(0, 29, 30)))
    assert [rank.exitcode for rank in started(processes, recipe, tmp_path / "run")] == [2, 2]
    messages = [(tmp_path / f"run.{rank}").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "2 of 30 training clips cannot be read" in messages[0]


def seed_that_parts(first: int, second: int, clips: int) -> int:
    """A seed whose first epoch has two clips in different halves."""
    for seed in range(100):
        order = np.random.default_rng([seed, 1]).permutation(clips).tolist()
        if (order.index(first) < clips // 2) != (order.index(second) < clips // 2):
            return seed
    raise AssertionError


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and lacks RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two', expected a number of at least 1; start with torchrun"),
    ],
)
def test_an_environment_that_is_not_torchrun_s_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=message), training_processes("cpu"):
        pass


def test_alone_nothing_is_joined() -> None:
    with training_processes("cpu") as processes:
        assert (processes.rank, processes.world, processes.device.type) == (0, 1, "cpu")
        assert processes.sums([1.5, 2]) == [1.5, 2]
        assert processes.from_first(lambda: 3) == 3
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_absent_device_is_named() -> None:
    with pytest.raises(TrainingError, match="no CUDA device"), training_processes("cuda"):
        pass
