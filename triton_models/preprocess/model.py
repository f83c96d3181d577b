"""A Triton Python-backend model that decodes and resizes images, so that a client does not need a library for that.

Inputs are the bytes of JPEG, PNG and WebP files, and outputs are the image encoder's frames. The frames are equal to
the bit to those that a client makes of the same files with dfer_deploy, because both run ``image_decoding.py``. That
file, ``model_requests.py``, ``receipts.py`` and ``cgroups.py`` are beside this one. Only NumPy, Pillow and Triton's own
module are available.

The names and the image size come from Triton's model configuration, the limits from these parameters:

    max_frames         largest T of a clip
    max_image_bytes    largest size of one encoded image, in bytes
    max_pixels         largest width times height of one image, from its header, checked before decoding
    max_request_pixels largest cost of all images of a request together, in pixels, because other requests wait
                       meanwhile; reading the files counts too
    decode_threads     number of threads that decode; 0 is one for every core, at most 8

Every thread holds one image in memory. Images of more than a quarter of max_pixels or max_image_bytes are decoded one
at a time, so that memory hardly grows with the number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from cgroups import usable_cores
from model_requests import RequestError, check_clips, error_response, input_array, refusal
from receipts import RECEIPT, receipt

try:
    import PIL.Image
    from image_decoding import ImageError, opened_image, resized, upright_rgb
except ModuleNotFoundError as error:
    # NVIDIA's images do not contain Pillow. The other models of the repository should load without it.
    if error.name != "PIL":
        raise
    _HAS_PILLOW = False
else:
    _HAS_PILLOW = True

Frame = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP")

MAX_THREADS = 8

MAX_SCANS = 100
"""Limits the scans of a progressive JPEG file, each of which costs a pass over all pixels."""

USUAL_SCANS = 12
"""Scans above which a progressive JPEG file's pixels count more than once, because every scan costs a pass over all
pixels. Encoders write about ten."""

READ_PIXELS = 100
"""The cost of one read of an image's file, in pixels."""

MAX_READS = 100_000
"""Limits the reads of an image's file; one of 16 MiB takes about ten thousand. Pillow goes through a file's pieces
(segments, chunks) in Python. Millions of empty ones cost seconds, in which all other images wait."""

_NO_PILLOW = (
    "this server decodes no images, because its Python has no Pillow; send frames to the other ensemble, or start the "
    "server from the Dockerfile of the bundle"
)


class Work:
    """The cost of one request's images, in pixels. The threads that decode them share it."""

    def __init__(self, most: int) -> None:
        self._most, self._pixels, self._lock = most, 0, threading.Lock()

    def add(self, pixels: int) -> None:
        """Add the cost of work that is about to be done.

        Raises:
            ImageError: the request costs more than the limit.
        """
        with self._lock:
            self._pixels += pixels
            if self._pixels > self._most:
                raise ImageError(
                    f"is beyond what one request may hold, {self._most} pixels in all its images (every read of a file "
                    f"counts as {READ_PIXELS} more, a JPEG with more than {USUAL_SCANS} scans more than once); "
                    "send fewer or smaller images at a time"
                )


class CountedBytes(io.BytesIO):
    """An image's bytes with a limited number of reads."""

    def __init__(self, image: bytes, work: Work) -> None:
        super().__init__(image)
        self._work, self._reads = work, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError("is made of far too many pieces; encode it anew")
        self._work.add(READ_PIXELS)
        return super().read(size)


class TritonPythonModel:
    """The model's instance; Triton calls ``initialize`` once and ``execute`` with every batch of requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the limits. After an exception, the model is not loaded, and Triton logs the message."""
        config = json.loads(args["model_config"])
        (model_input,), (model_output, *receipts) = config["input"], config["output"]
        self._has_receipt = bool(receipts)
        self._input_name: str = model_input["name"]
        self._output_name: str = model_output["name"]
        self._image_size = int(model_output["dims"][1])
        names = ("max_frames", "max_image_bytes", "max_pixels", "max_request_pixels", "decode_threads")
        limits = [int(config["parameters"][name]["string_value"]) for name in names]
        self._max_frames, self._max_image_bytes, self._max_pixels, self._max_request_pixels, threads = limits
        threads = threads or min(MAX_THREADS, usable_cores())
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._one_large_image = threading.RLock()
        if _HAS_PILLOW:
            PIL.Image.init()  # otherwise several threads would do it with the first request

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, in order. A request that cannot be answered gets its own error.

        Args:
            requests: requests with one input of bytes [b, T]; T may differ between requests.

        Returns:
            One response for each request.
        """
        if not _HAS_PILLOW:
            return [error_response(_NO_PILLOW, pb_utils.TritonError.UNSUPPORTED) for _ in requests]
        # All requests begin before the first is waited for, so that the threads work on all images.
        begun = [self._begun(request) for request in requests]
        return [one if isinstance(one, pb_utils.InferenceResponse) else self._answer(*one) for one in begun]

    def finalize(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _begun(self, request: Any) -> Any:
        """The images [b, T] and an iterator over the decoded frames in order, or the response for an error."""
        try:
            images = self._checked_input(request)
            frame = functools.partial(self._frame, Work(self._max_request_pixels))
            return images, self._threads.map(frame, np.ndindex(images.shape), images.reshape(-1).tolist())
        except Exception as error:
            return refusal(error)

    def _checked_input(self, request: Any) -> npt.NDArray[np.object_]:
        images: npt.NDArray[np.object_] = input_array(request, self._input_name)
        if images.dtype != np.object_ or images.ndim != 2:
            raise RequestError(
                f"{self._input_name!r} has the shape {list(images.shape)} and the dtype {images.dtype}, "
                "expected [B, T] of bytes"
            )
        check_clips(self._input_name, images, "images", self._max_frames)
        return images

    def _answer(self, images: npt.NDArray[np.object_], frames: Iterator[Frame]) -> Any:
        """Collect a request's frames. The first refused image cancels those that have not begun."""
        try:
            stacked = np.empty((images.size, self._image_size, self._image_size, 3), np.uint8)
            for index, frame in enumerate(frames):
                stacked[index] = frame
            output = stacked.reshape(*images.shape, *stacked.shape[1:])
            tensors = [pb_utils.Tensor(self._output_name, output)]
            if self._has_receipt:
                tensors.append(pb_utils.Tensor(RECEIPT, receipt([images, output])))
            return pb_utils.InferenceResponse(output_tensors=tensors)
        except Exception as error:
            return refusal(error)

    def _frame(self, work: Work, index: tuple[int, int], image: bytes) -> Frame:
        try:
            return self._decoded(image, work)
        except ImageError as error:
            clip, frame = index
            raise RequestError(f"{self._input_name}[{clip}, {frame}] {error}") from error

    def _decoded(self, image: bytes, work: Work) -> Frame:
        if not image:
            raise ImageError(f"is empty, expected the bytes of a file ({', '.join(FORMATS)})")
        if len(image) > self._max_image_bytes:
            raise ImageError(f"has {len(image)} bytes, expected at most {self._max_image_bytes}; make it smaller")
        # FF DA is the marker of a scan; inside a scan's data, 00 follows the byte FF.
        scans = image.count(b"\xff\xda") if image.startswith(b"\xff\xd8") else 1
        if scans > MAX_SCANS:
            raise ImageError(f"has {scans} scans, expected at most {MAX_SCANS}; encode it anew")
        with contextlib.ExitStack() as turn:  # left after the image's memory has been released
            if 4 * len(image) > self._max_image_bytes:
                turn.enter_context(self._one_large_image)
            with opened_image(CountedBytes(image, work), formats=FORMATS, max_pixels=self._max_pixels) as opened:
                pixels = opened.width * opened.height
                work.add(pixels * max(scans, USUAL_SCANS) // USUAL_SCANS)
                if 4 * pixels > self._max_pixels:
                    turn.enter_context(self._one_large_image)
                frame: Frame = resized(upright_rgb(opened), self._image_size)
            del opened
            return frame
