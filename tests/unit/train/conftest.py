"""A drawn set of 28 training and 7 test clips of 32 × 32 pixels, and a recipe that learns it in seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from training_runs import tiny_recipe

from dfer_deploy.train.recipe import Recipe
from dfer_deploy.train.synthetic import SyntheticSpec, write_synthetic_dataset


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums do not depend on the number of cores, and threads of a tiny model do not wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    write_synthetic_dataset(folder, SyntheticSpec(4, 1, 1, 1, image_size=32), workers=1)
    return folder


@pytest.fixture
def recipe(root: Path) -> Recipe:
    return tiny_recipe(root)


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Processes that are forked from one that has imported everything already, so that each costs no import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dfer_deploy.train.runs", "torch._dynamo", "matplotlib.figure"])
    return context
