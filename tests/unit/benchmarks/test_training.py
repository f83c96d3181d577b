"""The benchmark of training."""

import json
from pathlib import Path

import pytest
import training


def test_result_and_picture_are_written_like_those_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"seconds": [1.0, 2.0], "clips_per_s": 1.0, "peak_gb": 0.5, "first_loss": 2.0}
    contestants = {
        name: row | ({} if name == "dfer-deploy" else {"speedup": [2.0, 3.0]}) for name in training.CONTESTANTS
    }
    monkeypatch.setattr(training, "measure", lambda *_, **__: {"batch_size": 2, "contestants": contestants})
    monkeypatch.setattr("sys.argv", ["training.py", "--quick"])
    monkeypatch.chdir(tmp_path)
    training.main()
    result = json.loads((tmp_path / "training.json").read_text())
    assert result["contestants"].keys() == set(training.CONTESTANTS)
    assert result["rounds"] == 2
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
