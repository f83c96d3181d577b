"""Options from Python are checked as those of the command line."""

from __future__ import annotations

from typing import Any

import pytest

from dfer_deploy import BenchOptions, SettingError, VerifyOptions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpoint": "a.pt", "baseline": "b.npz"},
        {"checkpoint": "a.pt", "urls": ("grpc://h:1",), "in_process": True},
        {"baseline": "b.npz", "save_baseline": "c.npz"},
        {"baseline": "b.npz", "bisect": True},
        {"checkpoint": "a.pt", "batch_size": 0},
        {"checkpoint": "a.pt", "margin": 0},
        {"checkpoint": "a.pt", "margin": 101},
        {"checkpoint": "a.pt", "margin": float("nan")},
        {"checkpoint": "a.pt", "max_logit_error": -1},
        {"checkpoint": "a.pt", "runtimes": ("onnx",)},
    ],
)
def test_a_verification_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        VerifyOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"requests": 1},
        {"concurrencies": ()},
        {"concurrencies": (1, 0)},
        {"concurrencies": (257,)},
        {"runtimes": ("onnx",)},
    ],
)
def test_a_measurement_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        BenchOptions(**options)
