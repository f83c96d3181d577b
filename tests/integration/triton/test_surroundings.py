"""A real Triton in awkward surroundings: paths that a shell would execute, and files beside the user."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny import clips_of

from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.errors import ServerDiedError
from dfer_deploy.triton.cache import cache_folder
from dfer_deploy.triton.environment import TritonEnvironment, triton_environment
from dfer_deploy.triton.server import TritonServer


@pytest.fixture
def awkward_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, which a shell that executes the name of a folder in it would change."""
    folder = tmp_path / "a$(touch INJECTED)b: 'ü;&"
    folder.mkdir()
    (tmp_path / "random.py").write_text("raise SystemExit('the random.py beside the user ran')\n")
    monkeypatch.chdir(tmp_path)
    yield folder
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "random.py"])


@pytest.mark.usefixtures("environment")
def test_awkward_paths_are_served_and_not_executed(
    awkward_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASH_ENV", "INJECTED")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    repository = awkward_folder / "bundle" / "model_repository"
    shutil.copytree(bundle / "model_repository", repository)
    (awkward_folder / "cache").symlink_to(cache_folder())
    monkeypatch.setenv("DFER_DEPLOY_CACHE", str(awkward_folder / "cache"))
    with TritonServer(triton_environment(), repository) as server:
        with TritonPredictor(server.endpoints.grpc_url) as predictor:
            assert np.isfinite(predictor.predict(clips_of(1, size=32)).logits).all()
        (links,) = Path("/tmp").glob(f"dfer_deploy_{os.getpid()}_*")
        assert links.stat().st_mode & 0o777 == 0o700
    assert not links.exists()


def test_a_model_whose_process_dies_while_it_loads_ends_the_wait(
    environment: TritonEnvironment, bundle: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "model_repository"
    shutil.copytree(bundle / "model_repository", repository)
    code = repository / "dfer_window" / "1" / "model.py"
    code.write_text("import os, signal, time\ntime.sleep(0.5)\nos.kill(os.getpid(), signal.SIGKILL)\n")
    start = time.monotonic()
    server = TritonServer(environment, repository)
    with pytest.raises(ServerDiedError, match=r"died|failed to load"):
        server.start()
    assert time.monotonic() - start < 60
    server.stop()
    assert server.log_file is not None
    server.log_file.unlink(missing_ok=True)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(repository) in " ".join(p.info["cmdline"] or [])]
