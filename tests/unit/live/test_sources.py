"""Sources. FFmpeg's test picture stands in for a camera, which no test machine has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy.errors import ClipError, SettingError
from dfer_deploy.live import sources
from dfer_deploy.live.sources import camera_frames, camera_of, live_frames


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """16 frames in 0.8 s."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width = stream.height = 32
        for image in clips_of(1)[0]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    return tmp_path / "a.mp4"


def test_cameras_of_each_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.os.path, "exists", lambda path: path == "/dev/video2")
    assert camera_of("2", "linux") == ("/dev/video2", "v4l2")
    assert camera_of("/dev/video2", "linux") == ("/dev/video2", "v4l2")
    with pytest.raises(ClipError, match="there is no camera /dev/video0; expected one of"):
        camera_of("0", "linux")
    with pytest.raises(ClipError, match="FaceTime HD does not exist; expected a camera's number"):
        camera_of("FaceTime HD", "linux")
    with pytest.raises(ClipError, match="rtsp://host/1 is an address, expected a camera or a video file"):
        camera_of("rtsp://host/1", "linux")
    assert camera_of("FaceTime HD", "darwin") == ("FaceTime HD", "avfoundation")
    assert camera_of("0", "darwin") == ("0", "avfoundation")
    assert camera_of("USB Camera", "win32") == ("video=USB Camera", "dshow")
    for platform in ("linux", "darwin", "win32"):
        assert camera_of(str(tmp_path), platform) is None


def test_a_camera_is_thinned_to_the_interval() -> None:
    # FFmpeg's "realtime" filter makes the test picture come at its own speed, as a camera does.
    source = "testsrc=size=64x48:rate=50,realtime"
    frames = list(itertools.islice(camera_frames(source, "lavfi", 0.1), 6))
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image.max() > 100
    steps = np.diff([frame.time_s for frame in frames])
    assert (steps > 0.05).all()
    assert abs(float(np.mean(steps)) - 0.1) < 0.05


def test_time_begins_with_a_cameras_first_frame_and_a_slow_one_does_not_catch_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(sources.time, "monotonic", lambda: clock[0])
    decoded = sources._decoded

    def arriving(container: Any) -> Iterator[Any]:
        times = [103.0, 103.125, 103.25, 103.375, 105.0, 105.125, 105.25]
        for clock[0], frame in zip(times, decoded(container), strict=False):
            yield frame

    monkeypatch.setattr(sources, "_decoded", arriving)
    frames = camera_frames("testsrc=size=64x48:rate=50", "lavfi", 0.25)
    assert [(frame.time_s, frame.arrived_s) for frame in frames] == [
        (0.0, 103.0),
        (0.25, 103.25),
        (2.0, 105.0),
        (2.25, 105.25),
    ]


def test_a_camera_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"the camera nothing=1 cannot be read \("):
        next(camera_frames("nothing=1", "lavfi", 0.1))


def test_a_file_as_fast_as_possible_gives_every_frame(video: Path) -> None:
    with live_frames(str(video), 0.05, fast=True) as frames:
        taken = list(frames)
    assert [round(frame.time_s, 6) for frame in taken] == [round(0.05 * index, 6) for index in range(16)]
    assert frames.dropped == 0


def test_a_file_is_played_at_its_own_speed(video: Path) -> None:
    with live_frames(str(video), 0.1) as frames:
        taken = list(frames)
    assert len(taken) + frames.dropped == 8
    for frame in taken:
        assert frame.arrived_s - taken[0].arrived_s >= frame.time_s - taken[0].time_s - 0.01


def test_intervals_out_of_range(video: Path) -> None:
    with pytest.raises(SettingError, match=r"expected 0\.01 to 60"), live_frames(str(video), 0.001):
        pass
