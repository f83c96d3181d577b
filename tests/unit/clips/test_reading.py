import gc
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tiny import clips_of, write_frames

from dfer_deploy.clips import reading
from dfer_deploy.clips.reading import clip_from_path, clip_from_video, decoded_frames, frame_paths, natural_key, resized
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.errors import ClipError


def write_video(path: Path, clip: np.ndarray, codec: str = "ffv1", **options: str) -> Path:
    """A video of the frames [T, H, W, 3]; ffv1 in RGB is lossless."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = clip.shape[2], clip.shape[1]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.time_base = Fraction(1, 25)
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_video_gives_what_its_frames_give(tmp_path: Path) -> None:
    clip = clips_of(1, size=48, frames=40)[0]
    video = write_video(tmp_path / "a.mkv", clip)
    write_frames(tmp_path / "frames", clip)
    expected = np.stack([resized(Image.fromarray(clip[i]), 32) for i in sample_indices(40)])
    assert (clip_from_path(video, 32) == expected).all()
    assert (clip_from_path(tmp_path / "frames", 32) == expected).all()


@pytest.mark.parametrize("frames", [1, 7, 16])
def test_short_videos_repeat_their_last_frame(tmp_path: Path, frames: int) -> None:
    video = write_video(tmp_path / "a.mkv", clips_of(1, frames=frames)[0])
    clip = clip_from_path(video, 32)
    assert clip.shape == (16, 32, 32, 3)
    assert (clip[frames - 1 :] == clip[frames - 1]).all()


def test_the_resize_is_pillows_bilinear_filter_without_keeping_the_ratio(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    assert (resized(image, 32) == np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))).all()
    # Other filters and libraries differ by tens of grey levels on the same picture.
    assert (
        np.abs(resized(image, 32).astype(int) - np.asarray(image.resize((32, 32), Image.Resampling.NEAREST))).max() > 50
    )


def test_unpadded_names_are_ordered_as_numbers(tmp_path: Path) -> None:
    clip = clips_of(1, frames=12)[0]
    write_frames(tmp_path / "f", clip, name="{}.png")
    (tmp_path / "f" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "f" / "notes.txt").write_text("x")
    assert [path.stem for path in frame_paths(tmp_path / "f")] == [str(i) for i in range(1, 13)]
    assert sorted(["²1", "1"], key=natural_key) == ["1", "²1"]
    assert sorted(["img2_10", "img2_9", "img10_1", "img1"], key=natural_key) == ["img1", "img2_9", "img2_10", "img10_1"]


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "ffv1"), ("a.mp4", "mpeg4")])
def test_a_damaged_video_gives_the_frames_that_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, codec: str
) -> None:
    video = write_video(tmp_path / name, clips_of(1, size=64, frames=60)[0], codec)
    data = bytearray(video.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data) // 3, len(data) // 2, 40):
        data[place] ^= 0xFF
    video.write_bytes(data)
    assert clip_from_video(video, 32).shape == (16, 32, 32, 3)
    wrong = sum(frame.frame.is_corrupt for frame in decoded_frames(video))
    assert (wrong > 0) == (codec == "mpeg4")
    # Said once, however often it is decoded.
    (told,) = re.findall(r"is damaged: (\d+) of its frames", capsys.readouterr().err.replace("\n", " "))
    assert int(told) >= max(1, wrong)


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_truncated_video_is_refused_rather_than_answered(tmp_path: Path, name: str, share: float) -> None:
    options = {"movflags": "faststart"} if name.endswith(".mp4") else {}
    video = write_video(tmp_path / name, clips_of(1, size=64, frames=60)[0], "mpeg4", **options)
    assert clip_from_video(video, 32).shape == (16, 32, 32, 3)
    data = video.read_bytes()
    video.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ClipError, match=r"is truncated: it ends after \d\.\d s of the 2\.4 s"):
        clip_from_video(video, 32)


def test_a_playlist_cannot_open_other_files(tmp_path: Path) -> None:
    write_video(tmp_path / "secret.mkv", clips_of(1)[0])
    (tmp_path / "clip.mp4").write_text("ffconcat version 1.0\nfile secret.mkv\n")
    with pytest.raises(ClipError, match="cannot be read as a video"):
        clip_from_path(tmp_path / "clip.mp4", 32)


def test_names_with_colons_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mkv", clips_of(1)[0]).rename("face:1.mkv")
    assert clip_from_path(Path("face:1.mkv"), 32).shape == (16, 32, 32, 3)


def test_other_image_formats_are_not_opened_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ClipError, match=r"1\.png cannot be read as an image"):
        clip_from_path(tmp_path / "f", 32)


def test_paths_that_the_system_refuses_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="cannot be read"):
        clip_from_path(tmp_path / ("x" * 300), 32)
    with pytest.raises(ClipError, match="looks like an address; download it first"):
        clip_from_path(Path("https://host/a.mp4"), 32)
    with pytest.raises(ClipError, match="/dev/null is neither a file nor a folder"):
        clip_from_path(Path("/dev/null"), 32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", r"is empty \(0 bytes\)"),
        ("text.mp4", b"hello world" * 100, "cannot be read as a video"),
        (
            "still.JPG",
            b"\xff\xd8\xff",
            "is a picture, expected a video or a folder; put a clip's pictures into a folder",
        ),
        ("header.mp4", b"\x00\x00\x00\x20ftypisom" + b"\0" * 500, "cannot be read as a video|no video stream"),
    ],
)
def test_what_is_no_video_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipError, match=message):
        clip_from_path(tmp_path / name, 32)


def test_audio_alone_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match="has no video stream"):
        clip_from_path(path, 32)


def test_folders_without_usable_frames_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipError, match="has no images"):
        clip_from_path(tmp_path / "empty", 32)
    write_frames(tmp_path / "bad", clips_of(1, frames=3)[0])
    (tmp_path / "bad" / "00002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ClipError, match=r"00002\.png cannot be read as an image"):
        clip_from_path(tmp_path / "bad", 32)
    with pytest.raises(ClipError, match="does not exist"):
        clip_from_path(tmp_path / "none", 32)


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "f" / "1.png")
    with pytest.raises(ClipError, match="has more than 8 bits a channel"):
        clip_from_path(tmp_path / "f", 32)


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "f" / "1.png")
    with pytest.raises(ClipError, match="far too many pixels"):
        clip_from_path(tmp_path / "f", 32)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda clip: np.rot90(clip, -1, axes=(1, 2))),  # a phone's: 90 degrees, clockwise
        ((-1, 0, 0, -1), lambda clip: clip[:, ::-1, ::-1]),
        ((-1, 0, 0, 1), lambda clip: clip[:, :, ::-1]),  # a front camera's mirror
        ((1, 0, 0, -1), lambda clip: clip[:, ::-1]),
        ((0, 1, 1, 0), lambda clip: clip.swapaxes(1, 2)),
        ((0, -1, -1, 0), lambda clip: clip.swapaxes(1, 2)[:, ::-1, ::-1]),
    ],
)
def test_a_turned_or_mirrored_video_is_shown_upright(
    matrix: tuple[int, ...], shown: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """The same packets with a display matrix in the track's header."""
    clip = clips_of(1, size=64)[0]
    clip[:, :20, :20] = (250, 20, 20)
    source = write_video(tmp_path / "a.mp4", clip, "mpeg4")
    data = bytearray(source.read_bytes())
    a, b, c, d = (entry << 16 for entry in matrix)
    start = data.find(b"tkhd")
    place = data.find(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), start)
    assert 0 < place - start < 100
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    upright, turned = clip_from_path(source, 64), clip_from_path(tmp_path / "turned.mp4", 64)
    assert np.array_equal(shown(upright), turned)


def test_a_frame_goes_when_it_was_looked_at(tmp_path: Path) -> None:
    """Not when Python next looks for cycles: by then a 4K video had filled gigabytes."""
    video = write_video(tmp_path / "a.mkv", clips_of(1, size=64, frames=40)[0])
    gc.collect()
    gc.disable()
    try:
        for frame in decoded_frames(video):
            frame.upright()
        assert sum(type(known) is av.VideoFrame for known in gc.get_objects()) < 5
    finally:
        gc.enable()


@pytest.mark.parametrize(("pixel", "width"), [(Fraction(2), 128), (Fraction(8, 9), 57), (Fraction(1), 64)])
def test_pixels_become_square(pixel: Fraction, width: int, tmp_path: Path) -> None:
    clip = clips_of(1, size=64)[0]
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    frames = list(decoded_frames(tmp_path / "a.mp4"))
    assert {frame.upright().size for frame in frames} == {(width, 64)}
    stored = frames[0].frame.to_image().resize((width, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(frames[0].upright()), np.asarray(stored))


def test_stretched_pixels_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "a.mp4", clips_of(1, size=64)[0], "mpeg4")
    monkeypatch.setattr(av.video.stream.VideoStream, "sample_aspect_ratio", Fraction(100_000))
    with pytest.raises(ClipError, match="6400000 × 64 pixels, expected at most"):
        list(decoded_frames(video))


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), "fltp", "stereo")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(ClipError, match="has no video stream"):
        clip_from_path(path, 32)


def test_a_stream_that_grows_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two transport streams one after the other are one, whose header tells the first size."""
    small, large = (
        write_video(tmp_path / f"{size}.ts", clips_of(1, size=size)[0], "mpeg2video").read_bytes() for size in (32, 96)
    )
    (tmp_path / "grows.ts").write_bytes(small + large)
    assert len(list(decoded_frames(tmp_path / "grows.ts"))) > 16
    monkeypatch.setattr(reading, "MAX_PIXELS", 64 * 64)
    with pytest.raises(ClipError, match="has 96 × 96 pixels, expected at most 4096"):
        list(decoded_frames(tmp_path / "grows.ts"))
