"""Windows over a video, in process and by a server that is asked for both steps of the ensemble."""

import json
from pathlib import Path
from typing import Any

import pytest
from videos import SquareDetector, two_squares, write_timed_video

from dfer_deploy.bundle import Bundle
from dfer_deploy.commands.serving import served_bundle


@pytest.mark.usefixtures("environment")
def test_a_video_is_answered_alike_in_process_and_by_a_server(
    cli: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_deploy.commands.predict.open_detector", SquareDetector)
    video = write_timed_video(tmp_path / "a.mkv", two_squares(40, range(40), range(15, 40)), range(0, 4000, 100))
    answers = {}
    with served_bundle(bundle) as endpoints:
        for name, where in (
            ("in process", ("--bundle", bundle.path)),
            ("grpc", ("--url", endpoints.grpc_url)),
            ("http", ("--url", endpoints.http_url)),
        ):
            result = cli("predict", *where, video, "--frame-interval-s", 0.1, "--json", tmp_path / "j")
            assert result.exit_code == 0, result.output
            answers[name] = json.loads((tmp_path / "j").read_text())["results"]
    # 7 windows of the one who is always there, and 4 of the one who enters after 1.5 s.
    assert [row["track"] for row in answers["in process"]] == [1] * 7 + [2] * 4
    for name in ("grpc", "http"):
        for expected, found in zip(answers["in process"], answers[name], strict=True):
            assert (found["track"], found["start_s"], found["end_s"]) == (
                expected["track"], expected["start_s"], expected["end_s"],
            )  # fmt: skip
            assert found["logits"] == pytest.approx(expected["logits"], abs=1e-4)
