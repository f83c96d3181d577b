"""Serving options measured with a real server and real load."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import clips_of

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.client.triton_predictor import TritonPredictor
from dfer_deploy.triton.statistics import executed_batches


@pytest.mark.usefixtures("environment")
def test_a_proposal_of_a_real_server_leaves_nothing_behind(cli: Any, bundle: Bundle, tmp_path: Path) -> None:
    beside = sorted(bundle.path.parent.iterdir())
    manifest = (bundle.path / "manifest.json").read_bytes()
    result = cli("bench", bundle.path, "--propose", "--concurrency", 1, "--requests", 9, "--json", tmp_path / "p.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "p.json").read_text())
    (stage, *_) = report["stages"]
    assert [candidate["serving"]["instances"] for candidate in stage["candidates"]] in ([1], [1, 2])
    for candidate in stage["candidates"]:
        (load,) = candidate["loads"]
        assert len(load["rounds"]) == 3
        for executions in load["batches"].values():
            assert executions.keys() == {"1"}, "one request in flight makes no batch"
            assert executions["1"] >= 3 * 9
    changed = report["serving"]["instances"] > 1
    assert (f"dfer-deploy configure {bundle.path} --instances" in result.output) == changed
    assert ("the bundle is configured so already" in result.output) != changed
    assert sorted(bundle.path.parent.iterdir()) == beside
    assert (bundle.path / "manifest.json").read_bytes() == manifest


@pytest.mark.usefixtures("environment")
def test_sigterm_leaves_no_trial_behind(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "b")
    command = [sys.executable, "-m", "dfer_deploy", "bench", str(tmp_path / "b"), "--propose"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not list(tmp_path.glob(".b.*.trial/manifest.json")):
                assert process.poll() is None
                time.sleep(0.05)
            process.terminate()
            assert process.wait(60) == 130
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


@pytest.mark.usefixtures("environment")
def test_executions_are_counted_by_their_batch(bundle: Bundle) -> None:
    with served_bundle(bundle, quiet=True) as endpoints, TritonPredictor(endpoints.grpc_url) as predictor:
        encoder = bundle.contract.image_encoder.name
        before = executed_batches(endpoints.grpc_url, encoder)
        for count in (1, 3, 3, 5):
            predictor.predict(clips_of(count))
        assert executed_batches(endpoints.grpc_url, encoder) - before == {1: 1, 3: 2, 5: 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--propose", "--url", "grpc://127.0.0.1:1"), "omit --url"),
        (("--propose", "--rounds", 2), "needs 3"),
        (("--p99-ms", 5), "add --propose"),
        (("--propose", "--p99-ms", 0), "x>0"),
    ],
)
def test_what_does_not_go_together(cli: Any, bundle: Bundle, options: tuple[Any, ...], message: str) -> None:
    result = cli("bench", bundle.path, *options)
    assert result.exit_code == 2
    assert message in result.output
