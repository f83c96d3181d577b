"""The inputs and outputs of a TensorRT engine, compared with those of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.errors import RuntimeUnavailableError
from dfer_deploy.specs import GraphSpec, TensorSpec, require

DTYPES = {"uint8": "UINT8", "float32": "FLOAT"}
"""TensorRT's names of the graphs' types."""


@dataclass(frozen=True)
class ShapeRange:
    """The smallest and the largest shape, [B, T, …], of the input that an engine was built for."""

    smallest: tuple[int, ...]
    largest: tuple[int, ...]

    @property
    def max_batch(self) -> int:
        return self.largest[0]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that every size of ``shape`` lies between the two shapes.

        Raises:
            DferDeployError: a size is out of range, or the number of dimensions differs.
        """
        fits = len(shape) == len(self.largest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )
        require(
            fits,
            f"{name} has the shape {list(shape)}, but the engine was built for {list(self.smallest)} to "
            f"{list(self.largest)}; give it such a shape, or change the batch with: dfer-deploy configure BUNDLE "
            "--max-batch-size N, and then build the engines with: dfer-deploy build BUNDLE",
        )

    def room_for(self, tensor: TensorSpec) -> int:
        """Compute the largest number of values that a tensor of this engine's graph can have."""
        sizes = {"batch": self.largest[0], "time": self.largest[1]}
        return math.prod(sizes[size] if isinstance(size, str) else size for size in tensor.shape)


def pieces(batch: int, largest: int) -> list[slice]:
    """Split a batch into slices of at most ``largest`` clips. An empty batch gives one empty slice."""
    return [slice(start, min(start + largest, batch)) for start in range(0, max(batch, 1), largest)]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output as an engine describes it.

    Attributes:
        name: name of the tensor.
        mode: ``INPUT`` or ``OUTPUT``.
        dtype: TensorRT's name of the type, such as ``FLOAT``.
        shape: sizes; -1 for a dynamic one.
    """

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]

    def fits(self, other: EngineTensor) -> bool:
        """Check whether both can be the same tensor. A dynamic size fits any size."""
        same = (self.name, self.mode, self.dtype, len(self.shape)) == (
            other.name, other.mode, other.dtype, len(other.shape)
        )  # fmt: skip
        return same and all(-1 in (a, b) or a == b for a, b in zip(self.shape, other.shape, strict=True))

    def __str__(self) -> str:
        return f"{self.mode.lower()} {self.name} {self.dtype} {list(self.shape)}"


def check_tensors(found: Iterable[EngineTensor], spec: GraphSpec, plan: Path) -> None:
    """Check that an engine has exactly the inputs and outputs of ``spec``.

    Raises:
        DferDeployError: the inputs or outputs differ.
    """
    expected = [
        EngineTensor(
            tensor.name, mode, DTYPES[tensor.dtype], tuple(-1 if isinstance(s, str) else s for s in tensor.shape)
        )
        for mode, tensors in (("INPUT", spec.inputs), ("OUTPUT", spec.outputs))
        for tensor in tensors
    ]
    by_name = {tensor.name: tensor for tensor in found}
    same = len(by_name) == len(expected) and all(e.name in by_name and e.fits(by_name[e.name]) for e in expected)
    if not same:
        raise RuntimeUnavailableError(
            f"{plan} has {', '.join(map(str, by_name.values()))}, expected {', '.join(map(str, expected))}; "
            "it is the engine of another model, build it again"
        )
