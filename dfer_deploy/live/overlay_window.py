"""A window (tkinter, a part of Python) that shows the frames with the live answers."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from dfer_deploy.answers.clip_answers import StreamAnswer
from dfer_deploy.clips.faces import Box
from dfer_deploy.clips.faces import Image as Pixels
from dfer_deploy.drawing.overlay import Edges, Overlay
from dfer_deploy.errors import DferDeployError
from dfer_deploy.live.session import FaceAnswer

MAX_SIDE = 960
"""Limits the longer side of the shown frame, in pixels, so that the window fits on a screen."""


class OverlayWindow:
    """A window, which only the thread that opened it may use. Closing it ends the session."""

    def __init__(self, title: str) -> None:
        """Open the window.

        Raises:
            DferDeployError: Python lacks tkinter, or a display is not available.
        """
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise DferDeployError(
                "a window needs tkinter, which this Python lacks; install it (Debian and Ubuntu: python3-tk), "
                "or omit --window"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise DferDeployError(f"no window can be opened ({error}); omit --window") from error
        self._photo: Any = ImageTk.PhotoImage
        self._shown: Any = None
        self._root.title(title)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._overlay = LiveOverlay()
        self.is_open = True
        self._root.protocol("WM_DELETE_WINDOW", self._closed)

    def show(self, image: Pixels, faces: Sequence[FaceAnswer]) -> None:
        """Show a frame, uint8 [H, W, 3], with its answers."""
        if self.is_open:
            # Tk shows a picture only while a reference to it exists.
            self._shown = self._photo(self._overlay.drawn(image, faces), master=self._root)
            self._label.configure(image=self._shown)
            self._root.update()

    def __enter__(self) -> OverlayWindow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_open:
            self._closed()

    def _closed(self) -> None:
        self.is_open = False
        self._root.destroy()


class LiveOverlay:
    """Draws the answers on a sequence of frames.

    A face that is not found at the moment keeps its last answer.
    """

    def __init__(self) -> None:
        self._overlay = Overlay((), (0, 0))
        self._answers: dict[int, StreamAnswer] = {}

    def drawn(self, image: Pixels, faces: Sequence[FaceAnswer]) -> Image.Image:
        """Draw every face's box, expression and probabilities on a frame, scaled to at most 960 pixels."""
        picture = Image.fromarray(image)
        scale = min(1.0, MAX_SIDE / max(picture.size))
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        boxes = {face.track: _scaled(face.box, scale) for face in faces}
        self._answers = {
            face.track: answer for face in faces if (answer := face.answer or self._answers.get(face.track))
        }
        labels = next((tuple(answer.probabilities) for answer in self._answers.values()), self._overlay.labels)
        if (labels, picture.size) != (self._overlay.labels, self._overlay.size):
            self._overlay = Overlay(labels, picture.size)
        answers = {
            track: np.array(list(answer.probabilities.values()), np.float32) for track, answer in self._answers.items()
        }
        self._overlay.draw(picture, boxes, answers)
        return picture


def _scaled(box: Box | None, scale: float) -> Edges:
    return (0, 0, 0, 0) if box is None else (scale * box.left, scale * box.top, scale * box.right, scale * box.bottom)
