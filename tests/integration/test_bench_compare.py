"""``bench --compare`` with real measurements of the tiny model in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.measurement import bench as bench_module


def test_a_run_is_held_against_an_older_one(
    cli: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "_SECONDS_PER_MEASUREMENT", 0.05)
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    common = ("bench", bundle.path, "--runtime", "onnxruntime-cpu")
    assert cli(*common, "--json", old).exit_code == 0
    content = json.loads(old.read_text())

    def claim(clips_per_s: float, **changes: Any) -> None:
        """Makes the older run one that had this throughput, without noise."""
        contestant = content["in_process"][0] | {"throughput": [clips_per_s] * 3}
        old.write_text(json.dumps(content | {"in_process": [contestant]} | changes))

    # On a busy machine one round may scatter by more than any fall can be; these are as good as equal.
    monkeypatch.setattr(bench_module, "_latencies_s", lambda predict, clips: [0.01, 0.01])
    claim(0.01)
    result = cli(*common, "--compare", old, "--json", new)
    assert result.exit_code == 0, result.output
    assert "not slower beyond the noise" in result.output
    assert "not the same as in the older run" not in result.output
    more = content["in_process"][0] | {"name": "another", "throughput": [1.0] * 3}
    claim(0.01, in_process=[content["in_process"][0] | {"throughput": [0.01] * 3}, more])
    result = cli(*common, "--compare", old)
    assert (result.exit_code, "another of the older run was not measured" in result.output) == (3, True), result.output
    claim(0.01, subject=content["subject"] | {"precision": "fp16"})
    assert "another precision (fp32, was fp16)" in cli(*common, "--compare", old).output
    claim(1e9)
    result = cli(*common, "--compare", old, "--json", new)
    assert result.exit_code == 1, result.output
    assert "measure again" in result.output
    (contestant,) = json.loads(new.read_text())["comparison"]["contestants"]
    assert contestant["throughput"]["ratio"] < 1e-6
    result = cli(*common, "--compare", old, "--rounds", 2)
    assert (result.exit_code, "expected at least 3" in result.output) == (2, True), result.output
    other = content["in_process"][0] | {"name": "another runtime"}
    old.write_text(json.dumps(content | {"in_process": [other]}))
    monkeypatch.setattr(
        "dfer_deploy.api.bench_bundle.measure", lambda *_, **__: pytest.fail("measured what cannot be compared")
    )
    result = cli(*common, "--compare", old)
    assert (result.exit_code, "'onnxruntime fp32'" in result.output) == (2, True), result.output
    claim(1.0, machine="another one")
    result = cli(*common, "--compare", old)
    assert (result.exit_code, "'another one'" in result.output) == (2, True), result.output
    # A run that failed would be what the next one is held against, and pass.
    result = cli(*common, "--compare", old, "--json", old)
    assert (result.exit_code, old.name in result.output.replace("\n", "")) == (2, True)
    assert cli("bench", bundle.path, "--propose", "--compare", old).exit_code == 2
