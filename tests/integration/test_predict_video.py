"""Windows over a video, in process and by a server that is asked for both steps of the ensemble."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import SquareDetector, two_squares, write_timed_video

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.faces import Detection
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer


@pytest.mark.usefixtures("environment")
def test_a_video_is_answered_alike_in_process_and_by_a_server(
    cli: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_deploy.api.predict_inputs.open_face_detector", lambda _: SquareDetector())
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


@pytest.mark.slow
def test_a_server_that_is_started_again_costs_no_answer(
    cli: Any, bundle: Bundle, environment: TritonEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TritonServer(environment, bundle.model_repository, exit_timeout_s=0)
    first.start()
    second = TritonServer(environment, bundle.model_repository, exit_timeout_s=0, grpc_port=first.endpoints.grpc_port)
    restart = threading.Thread(target=second.start)

    class Restarting(SquareDetector):
        """Finds the squares, and in the middle of the video stops the server."""

        def __init__(self) -> None:
            self.frames = 0

        def detect(self, image: np.ndarray) -> list[Detection]:
            self.frames += 1
            if self.frames == 40:
                first.stop()
                restart.start()
            return super().detect(image)

    video = write_timed_video(tmp_path / "a.mkv", two_squares(80, range(80), range(0)), range(0, 8000, 100))
    options = (video, "--frame-interval-s", 0.1, "--json", tmp_path / "j")
    rows = {}
    try:
        for name, detector, where in (
            ("in process", SquareDetector, ("--bundle", bundle.path)),
            ("server", Restarting, ("--url", first.endpoints.grpc_url)),
        ):
            monkeypatch.setattr("dfer_deploy.api.predict_inputs.open_face_detector", lambda _, made=detector: made())
            result = cli("predict", *where, *options)
            assert result.exit_code == 0, result.output
            rows[name] = json.loads((tmp_path / "j").read_text())["results"]
        restart.join()
    finally:
        first.stop()
        second.stop()
    assert len(rows["server"]) == len(rows["in process"]) == 17
    for expected, found in zip(rows["in process"], rows["server"], strict=True):
        assert found["logits"] == pytest.approx(expected["logits"], abs=1e-4)
