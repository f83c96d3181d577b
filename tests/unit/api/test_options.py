"""Options from Python are checked as those of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfer_deploy import (
    BenchOptions,
    ExportOptions,
    SettingError,
    VerifyOptions,
    evaluate_checkpoint,
    export_bundle,
)
from dfer_deploy.api.predict_inputs import PredictOptions


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
        {"checkpoint": "a.pt", "runtimes": "triton"},
        {"checkpoint": "a.pt", "urls": "grpc://h:1"},
        {"checkpoint": "a.pt", "pool": "v.json"},
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


@pytest.mark.parametrize(
    "options",
    [
        {"target": "bogus"},
        {"precision": "bf16"},
        {"class_names": "abc"},
        {"keep_fp32": "encoder.0"},
        {"frame_interval_s": 0.0},
    ],
)
def test_an_export_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        ExportOptions(**options)


def test_a_serving_option_that_does_not_exist_is_refused(own_checkpoint: Path, tmp_path: Path) -> None:
    for serving in ({"instance": 2}, {"instances": "2"}):
        with pytest.raises(SettingError):
            export_bundle(own_checkpoint, tmp_path / "b", serving=serving)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"stride": 0}, {"margin": -1}, {"faces": "x"}])
def test_a_prediction_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        PredictOptions(**options)


def test_no_clips_in_a_pass_are_refused() -> None:
    with pytest.raises(SettingError):
        evaluate_checkpoint("a.pt", "list.txt", batch_size=0)
