"""Run a bundle in this process, with the methods of the client."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from dfer_deploy.answers.clip_answers import answer_from
from dfer_deploy.answers.in_process_stream import InProcessStream
from dfer_deploy.answers.video_windows import AnswersVideos
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.client import Answer, StreamAnswer
from dfer_deploy.client.blocking import ClipBatch, OneClip
from dfer_deploy.client.request_steps import EncodedImage, EncodedImages, image_bytes
from dfer_deploy.clips.image_decoding import ImageError, opened_image, resized, upright_rgb
from dfer_deploy.clips.reading import MAX_PIXELS, Clip
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.errors import ClipError, extras_named
from dfer_deploy.plain_data import checked_arguments
from dfer_deploy.runtimes.available import RUNTIMES, Runtime, open_predictor, usual_runtime
from dfer_deploy.runtimes.predictor import Float32, Frames, Prediction, Predictor
from dfer_deploy.specs import MAX_FRAMES, require

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
"""The image formats that the server accepts too."""


@extras_named("running a bundle in this process")
@checked_arguments
def load_bundle(
    bundle: Bundle | Path | str, *, runtime: Runtime | None = None, allow_host_code: bool = False
) -> LoadedBundle:
    """Load a bundle's graphs into this process. The result has the methods of ``Client`` and needs no server.

    Args:
        bundle: an opened bundle, or its folder.
        runtime: what runs the graphs; None for TensorRT if the bundle's engines run here, else onnxruntime.
        allow_host_code: let TensorRT execute the code that version-compatible engines carry.

    Raises:
        DferDeployError: the folder is not a bundle, it is damaged, or it does not run here.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    require(
        runtime is None or runtime in RUNTIMES,
        f"the runtime {runtime!r} does not exist; expected one of {', '.join(RUNTIMES)}",
    )
    chosen = runtime or usual_runtime(opened, host_code_allowed=allow_host_code)
    return LoadedBundle(opened, open_predictor(chosen, opened, host_code_allowed=allow_host_code))


class LoadedBundle(AnswersVideos):
    """A bundle in this process. It is a context manager and must be used by one thread at a time.

    Example:
        >>> with load_bundle("dfer.bundle") as model:
        ...     model.predict(clip).expression
        'happiness'
    """

    def __init__(self, bundle: Bundle, predictor: Predictor) -> None:
        self.bundle, self._predictor = bundle, predictor
        self._name, self._is_closed = predictor.name, False

    @property
    def name(self) -> str:
        """The name of the runtime and its precision, for example ``onnxruntime fp32``."""
        return self._name

    @property
    def predictor(self) -> Predictor:
        """What answers batches of frames.

        Raises:
            DferDeployError: the bundle is closed.
        """
        require(not self._is_closed, "the bundle is closed; load it again")
        return self._predictor

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names in the order of the logits."""
        return self.bundle.spec.prompts.class_names

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.bundle.spec.prompts.num_classes

    @property
    def image_size(self) -> int:
        """S, height and width in pixels of the frames that the model takes."""
        return self.bundle.spec.clip.vision.image_size

    @property
    def frame_interval_s(self) -> float | None:
        """Seconds between the 16 frames of a training clip; None if unknown."""
        return self.bundle.manifest.frame_interval_s

    @overload
    def predict(self, clip: OneClip | EncodedImages) -> Answer: ...
    @overload
    def predict(self, clip: ClipBatch) -> list[Answer]: ...
    def predict(self, clip: Any) -> Any:
        """Predict the expression in a clip. The model always sees 16 frames, as at test time.

        Args:
            clip: uint8 [T, S, S, 3], RGB in [0, 255], S = ``image_size``, in the order of time. If T < 16, the last
                frame is repeated; if T > 16, the frames of ``sample_indices`` are used. Or a batch of such clips,
                [B, T, S, S, 3]. Or a list of encoded images of any size (JPEG, PNG or WebP), as bytes or paths.

        Returns:
            One answer; for a batch, a list of B answers.

        Raises:
            ClipError: the clip has another shape or dtype, or an image cannot be read or decoded.
        """
        if isinstance(clip, np.ndarray):
            frames = clip if clip.ndim == 5 else clip[np.newaxis]
            self._check(frames, given=clip)
            frames = frames[:, sample_indices(frames.shape[1])]
        else:
            if isinstance(clip, str | bytes | Path) or not isinstance(clip, Sequence):
                raise ClipError(f"the clip is a {type(clip).__name__}, expected an array or a list of images")
            require(len(clip) > 0, "the clip has no images, expected at least one")
            frames = np.stack([self._decoded(clip[index]) for index in sample_indices(len(clip)).tolist()])[np.newaxis]
        found = self.predictor.predict(frames)
        answers = [answer_from(self.labels, *values) for values in zip(found.logits, found.probabilities, strict=True)]
        return answers if isinstance(clip, np.ndarray) and clip.ndim == 5 else answers[0]

    def stream(self) -> LoadedStream:
        """Open a live stream as a context manager: ``with model.stream() as stream: stream.push(frame)``."""
        return LoadedStream(self)

    def encode(self, frames: Frames) -> Float32:
        """Run the image encoder on frames, uint8 [B, T, S, S, 3]; return frame features, float32 [B, T, L]."""
        self._check(frames, MAX_FRAMES)
        return self.predictor.encode(frames)

    def classify(self, frame_features: Float32) -> Prediction:
        """Run the temporal head on frame features, float32 [B, T, L]; return logits and probabilities, [B, C]."""
        length, shape = self.bundle.spec.clip.embed_dim, np.shape(frame_features)
        if not (
            isinstance(frame_features, np.ndarray)
            and frame_features.dtype == np.float32
            and len(shape) == 3
            and shape[0] >= 1
            and 1 <= shape[1] <= MAX_FRAMES
            and shape[2] == length
        ):
            raise ClipError(f"frame_features has the shape {list(shape)}, expected float32 [B, 1 to 16, {length}]")
        return self.predictor.classify(frame_features)

    def predict_frames(self, frames: Frames) -> Prediction:
        """Run both graphs on frames as they are, uint8 [B, T, S, S, 3], 1 ≤ T ≤ 16, without padding or sampling."""
        self._check(frames, MAX_FRAMES)
        return self.predictor.predict(frames)

    def close(self) -> None:
        """Release the graphs. Further calls do nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._predictor.__exit__(None, None, None)

    def __enter__(self) -> LoadedBundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, frames: Frames, max_frames: int | None = None, given: Any = None) -> None:
        size, shape = self.image_size, np.shape(frames)
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 5 or 0 in shape:
            fits = False
        else:
            fits = shape[2:] == (size, size, 3) and shape[1] <= (max_frames or shape[1])
        if not fits:
            of_user = list(shape if given is None else np.shape(given))
            raise ClipError(
                f"the clip has the shape {of_user} and the dtype {getattr(frames, 'dtype', type(frames))}, expected "
                f"uint8 [T, {size}, {size}, 3], RGB in [0, 255], or a batch of such clips"
            )

    def _decoded(self, image: EncodedImage) -> Clip:
        content = image_bytes(image)
        try:
            with opened_image(io.BytesIO(content), formats=_IMAGE_FORMATS, max_pixels=MAX_PIXELS) as opened:
                return resized(upright_rgb(opened), self.image_size)
        except ImageError as error:
            name = "the image" if isinstance(image, bytes | bytearray | memoryview) else repr(str(image))
            raise ClipError(f"{name} {error}") from error


class LoadedStream:
    """A live stream in this process. It is a context manager and must be used by one thread at a time."""

    def __init__(self, model: LoadedBundle) -> None:
        self._model, self._stream = model, InProcessStream(model.predictor, model.labels)

    def push(self, frame: Clip | EncodedImage) -> StreamAnswer:
        """Predict the expression of the last 16 frames. While there are fewer, the newest frame is repeated.

        Args:
            frame: uint8 [S, S, 3], RGB in [0, 255], S = the model's ``image_size``, one frame interval after the
                previous frame. Or an encoded image of any size (JPEG, PNG or WebP), as bytes or a path.

        Raises:
            ClipError: the frame has another shape or dtype, or an image cannot be read or decoded.
            DferDeployError: the stream is closed.
        """
        if isinstance(frame, np.ndarray):
            self._model._check(frame[np.newaxis, np.newaxis], given=frame)
            return self._stream.push(frame)
        return self._stream.push(self._model._decoded(frame))

    def close(self) -> None:
        """Forget the frames. Further calls do nothing."""
        self._stream.close()

    def __enter__(self) -> LoadedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
