"""Videos of two squares and what finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from videos import SquareDetector, two_squares, write_timed_video


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer_deploy.api.predict_inputs.open_face_detector", lambda _: SquareDetector())


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Two people, the second one late; 5 s."""
    frames = two_squares(50, red=range(50), green=range(20, 50))
    return write_timed_video(tmp_path / "a.mkv", frames, range(0, 5000, 100))
