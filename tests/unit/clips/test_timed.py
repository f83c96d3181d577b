import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from videos import numbered, turn, write_timed_video

from dfer_deploy.clips.reading import clip_from_video
from dfer_deploy.clips.timed import duration_s, shown_frames, timed_frames
from dfer_deploy.errors import ClipError, SettingError


def indices_at(video: Path, frames: np.ndarray, interval_s: float) -> list[tuple[float, int]]:
    """The times that come out, with the place of the frame in ``frames``."""
    answer = []
    for frame in timed_frames(video, interval_s):
        (place,) = [index for index, pixels in enumerate(frames) if (pixels == frame.image).all()]
        answer.append((frame.time_s, place))
    return answer


@pytest.mark.parametrize("interval_s", [0.04, 0.1, 1 / 6, 0.5])
def test_the_frame_that_is_shown_at_each_time_comes(tmp_path: Path, interval_s: float) -> None:
    frames = numbered(40)
    video = write_timed_video(tmp_path / "a.mkv", frames, range(0, 1600, 40))
    # 40 frames of 40 ms: until 1.6 s.
    expected = [
        (k * interval_s, int(k * interval_s / 0.04 + 1e-6)) for k in range(int(np.ceil(1.6 / interval_s - 1e-6)))
    ]
    assert indices_at(video, frames, interval_s) == expected


def test_times_are_those_of_presentation_where_the_rate_varies(tmp_path: Path) -> None:
    frames = numbered(6)
    times_ms = [0, 30, 500, 520, 540, 2000]
    video = write_timed_video(tmp_path / "a.mkv", frames, times_ms)
    places = [place for _, place in indices_at(video, frames, 0.25)]
    # At 0, 250, 500, … 2000 ms; the last frame is shown for a moment.
    assert places == [0, 1, 2, 4, 4, 4, 4, 4, 5]


def test_the_last_frame_is_shown_as_long_as_it_states(tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mp4", numbered(5, 64), range(0, 500, 100), "mpeg4")
    longer = tmp_path / "longer.mp4"
    with av.open(str(video)) as source, av.open(str(longer), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        packets[-1].duration = round(0.7 / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            container.mux(packet)
    assert [frame.end_s for frame in shown_frames(longer)][-2:] == [pytest.approx(0.4), pytest.approx(1.1)]


def test_time_begins_with_the_first_frame(tmp_path: Path) -> None:
    frames = numbered(10)
    video = write_timed_video(tmp_path / "a.mkv", frames, range(5000, 6000, 100))
    assert indices_at(video, frames, 0.2) == [(k * 0.2, 2 * k) for k in range(5)]


def test_a_rotated_video_is_turned_upright(tmp_path: Path) -> None:
    frames = np.full((10, 48, 64, 3), 40, np.uint8)
    frames[:, :20, :20] = (250, 20, 20)
    video = write_timed_video(tmp_path / "a.mp4", frames, range(0, 400, 40), "mpeg4")
    upright = next(timed_frames(video, 0.1)).image
    turn(video)
    turned = next(timed_frames(video, 0.1)).image
    assert turned.shape == (64, 48, 3)
    assert np.abs(np.rot90(upright, -1).astype(int) - turned).mean() < 3


def test_a_truncated_video_is_refused_before_its_first_frame(tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mp4", numbered(60, 64), range(0, 2400, 40), "mpeg4", movflags="faststart")
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipError, match="is truncated"):
        next(timed_frames(video, 0.1))


def test_frames_without_times_follow_each_other_at_the_usual_distance(tmp_path: Path) -> None:
    path = tmp_path / "a.m4v"
    with av.open(str(path), "w", format="m4v") as container:  # packets without a container
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for pixels in numbered(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    shown = list(shown_frames(path))
    assert len(shown) == 20
    assert all(a.end_s == b.start_s and b.start_s > a.start_s for a, b in itertools.pairwise(shown))


def test_times_that_begin_anew_go_on(tmp_path: Path) -> None:
    """Two transport streams one after the other, as recorders write them."""
    part = write_timed_video(tmp_path / "a.ts", numbered(10, 64), range(0, 1000, 100), "mpeg4").read_bytes()
    (tmp_path / "joined.ts").write_bytes(2 * part)
    shown = list(shown_frames(tmp_path / "joined.ts"))
    assert len(shown) == 20
    assert all(a.end_s == b.start_s and b.start_s > a.start_s for a, b in itertools.pairwise(shown))
    assert shown[-1].end_s == pytest.approx(2.0, abs=0.3)


def test_damaged_times_do_not_hold_a_frame_for_ever(tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(3), [0, 40, 400_000_000])
    with pytest.raises(ClipError, match="no frame between"):
        list(timed_frames(video, 0.5))


def test_an_interval_out_of_range_is_refused(tmp_path: Path) -> None:
    for interval_s in (0.0, -1.0, 100.0, float("nan")):
        with pytest.raises(SettingError, match="frame interval"):
            next(timed_frames(tmp_path / "a.mkv", interval_s))


def test_the_stated_duration(tmp_path: Path) -> None:
    video = write_timed_video(tmp_path / "a.mkv", numbered(10), range(0, 1000, 100))
    assert duration_s(video) == pytest.approx(1.0, abs=0.1)
    assert clip_from_video(video, 32).shape == (16, 32, 32, 3)
