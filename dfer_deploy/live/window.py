"""The live answers over the picture, in a window (tkinter, which Python brings)."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dfer_deploy.clips.faces import Image as Pixels
from dfer_deploy.errors import DferDeployError
from dfer_deploy.live.session import FaceAnswer
from dfer_deploy.windows import WHOLE

LONGEST_SIDE = 960
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's; the track's number stands at the box, so that colour alone tells nothing."""

_BAR_WIDTH = 60


class OverlayWindow:
    """A window; closing it ends the session. To be used by the thread that made it."""

    def __init__(self, title: str) -> None:
        """Opens the window.

        Raises:
            DferDeployError: Python has no tkinter, or there is no display.
        """
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise DferDeployError(
                "a window needs tkinter, which this Python lacks; install it (Debian and Ubuntu: python3-tk), "
                "or leave --window away"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise DferDeployError(f"no window can be opened ({error}); leave --window away") from error
        self._photo: Any = ImageTk.PhotoImage
        self._shown: Any = None
        self._root.title(title)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self.is_open = True
        self._root.protocol("WM_DELETE_WINDOW", self._closed)

    def show(self, image: Pixels, faces: Sequence[FaceAnswer]) -> None:
        """Shows a frame, uint8 [H, W, 3], with its answers."""
        if self.is_open:
            # Tk shows a picture only as long as somebody holds it.
            self._shown = self._photo(overlaid(image, faces), master=self._root)
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


def overlaid(image: Pixels, faces: Sequence[FaceAnswer]) -> Image.Image:
    """The frame, at most 960 pixels long, with the box of every face, its expression and the class probabilities."""
    picture = Image.fromarray(image)
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    pen, font = ImageDraw.Draw(picture, "RGBA"), ImageFont.load_default(14)
    for face in faces:
        colour = _COLOURS[face.track % len(_COLOURS)]
        left = top = 4.0
        if face.box is not None:
            edges = [scale * edge for edge in (face.box.left, face.box.top, face.box.right, face.box.bottom)]
            pen.rectangle(edges, outline=colour, width=3)
            left, top = edges[2], edges[1]
        if face.answer is None:
            continue
        title = f"{face.answer.expression} {face.answer.confidence:.2f}"
        rows = [title if face.track == WHOLE else f"{face.track}: {title}", *face.answer.probabilities]
        names = max(font.getlength(row) for row in rows)
        size = (names + _BAR_WIDTH + 16, 17 * len(rows) + 6)
        # On the right of the box where there is room, else on its left, and always in the picture.
        if face.box is not None:
            left = left + 6 if left + 6 + size[0] <= picture.width else scale * face.box.left - 6 - size[0]
        left = max(0.0, min(left, picture.width - size[0]))
        top = max(0.0, min(top, picture.height - size[1]))
        pen.rectangle((left, top, left + size[0], top + size[1]), fill=(0, 0, 0, 165), outline=colour)
        pen.text((left + 5, top + 2), rows[0], fill="white", font=font)
        for index, (name, probability) in enumerate(face.answer.probabilities.items(), 1):
            y = top + 2 + 17 * index
            shade = "white" if name == face.answer.expression else "#c8c8c8"
            pen.text((left + 5, y), name, fill=shade, font=font)
            bar = left + names + 10
            pen.rectangle((bar, y + 3, bar + _BAR_WIDTH, y + 14), outline="#808080")
            pen.rectangle((bar, y + 3, bar + _BAR_WIDTH * probability, y + 14), fill=shade)
    return picture
