"""What stands in for Triton's Python module, so that a model.py runs in the tests' own process."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field

import numpy as np
import pytest


@dataclass
class Tensor:
    tensor_name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError(Exception):
    INTERNAL = 1
    INVALID_ARG = 3
    UNSUPPORTED = 5

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Response:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def value(self, name: str) -> np.ndarray:
        assert self.error is None
        return next(tensor.array for tensor in self.output_tensors if tensor.tensor_name == name)


@dataclass
class Request:
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


class Logger:
    warnings: list[str] = []  # noqa: RUF012 - emptied for every test

    @classmethod
    def log_warn(cls, message: str) -> None:
        cls.warnings.append(message)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    array = request.tensors.get(name)
    return None if array is None else Tensor(name, array)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``import triton_python_backend_utils`` find these."""
    Logger.warnings.clear()
    fake = types.ModuleType("triton_python_backend_utils")
    for name, value in (
        ("Tensor", Tensor), ("TritonError", TritonError), ("InferenceResponse", Response),
        ("Logger", Logger),
        ("get_input_tensor_by_name", get_input_tensor_by_name),
    ):  # fmt: skip
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
