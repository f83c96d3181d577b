"""Answers draw themselves."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer_deploy.answers.clip_answers import answer_from, stream_answer_from
from dfer_deploy.answers.video_windows import VideoWindows
from dfer_deploy.errors import ClipError, WriteError
from dfer_deploy.inference.windows import Window

LABELS = ("happiness", "sadness", "neutral")


def logits_and_probabilities(*probabilities: float) -> tuple[np.ndarray, np.ndarray]:
    values = np.array(probabilities, np.float32)
    return np.log(values), values


def video_windows(count: int) -> VideoWindows:
    def windows() -> Generator[Window, None, None]:
        for place in range(count):
            logits, values = logits_and_probabilities(0.9 - 0.08 * place, 0.05 + 0.08 * place, 0.05)
            yield Window(1, 0.5 * place, 0.5 * place + 2.0, logits, values, 16, 1.0, LABELS)

    return VideoWindows(windows(), LABELS, "a.mp4", interval_s=0.125)


def test_an_answer_draws_a_bar_for_every_class(tmp_path: Path) -> None:
    answer = answer_from(LABELS, *logits_and_probabilities(0.7, 0.2, 0.1))
    picture = answer.plot(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(picture))
    other = answer_from(LABELS, *logits_and_probabilities(0.7, 0.1, 0.2)).plot()
    assert picture.size == other.size
    assert (np.asarray(picture) != np.asarray(other)).any()
    assert stream_answer_from(LABELS, *logits_and_probabilities(0.7, 0.2, 0.1), frames=3).plot() == picture
    assert Image.open(io.BytesIO(answer._repr_png_())).size == picture.size
    with pytest.raises(WriteError):
        answer.plot(tmp_path / "none" / "a.png")


def test_the_windows_of_a_video_draw_all_of_them_after_a_table_too(tmp_path: Path) -> None:
    windows = video_windows(8)
    first = next(windows)
    assert len(windows.to_pandas()) == len(windows.to_dict()) == 8
    assert windows.to_dict()[0] == first.to_dict()
    picture = windows.plot(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), np.asarray(picture))
    assert np.array_equal(np.asarray(video_windows(8).plot()), np.asarray(picture))
    with pytest.raises(ClipError, match=r"no face was found in a\.mp4"):
        video_windows(0).plot()


def test_a_picture_over_time_names_the_extra_that_it_needs() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from dfer_deploy.answers.video_windows import VideoWindows\n"
        "from dfer_deploy import MissingExtraError\n"
        "import numpy as np; from dfer_deploy.inference.windows import Window\n"
        "one = Window(1, 0.0, 1.0, np.zeros(1, 'f4'), np.ones(1, 'f4'), 16, 1.0, ('a',))\n"
        "try: VideoWindows((w for w in [one]), ('a',), 'a', interval_s=0.1).plot()\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("drawing a video's answers needs the package 'matplotlib'")
