"""Options from Python are checked as those of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_deploy import (
    AsyncClient,
    BenchOptions,
    BuildOptions,
    Client,
    ExportOptions,
    ServingOptions,
    SettingError,
    VerifyOptions,
    bench_bundle,
    build_engines,
    evaluate_checkpoint,
    export_bundle,
    inspect_checkpoint,
    load_bundle,
    verify_bundle,
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


VERIFY = VerifyOptions(baseline="b.npz")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: inspect_checkpoint(3), "path is 3, expected Path or str"),
        (lambda: evaluate_checkpoint("a.pt", None), "data is None, expected Path or str"),
        (lambda: export_bundle("a.pt", "b", 16), "options is 16, expected ExportOptions or None"),
        (
            lambda: export_bundle("a.pt", "b", precision=16),
            "'precision'; its arguments are checkpoint, output",
        ),
        (lambda: bench_bundle("b", seconds="x"), "'seconds'; its arguments are bundle, options"),
        (lambda: Client(), "Client: missing a required argument: 'url'; its arguments are url, model"),
        (lambda: export_bundle("a.pt", force="yes"), "force is 'yes', expected bool"),
        (lambda: build_engines("b", builder="trt"), "builder is 'trt', expected 'tensorrt' or 'tensorrt_rtx'"),
        (lambda: load_bundle(None), "bundle is None, expected Bundle, Path or str"),
        (lambda: verify_bundle(3, "list.txt", VERIFY), "bundle is 3, expected Bundle, Path or str"),
        (lambda: verify_bundle("b", ["list.txt", 3], VERIFY), "expected LabelledClips, Path, str or Sequence[Path or"),
        (lambda: verify_bundle("b", "list.txt", {}), "options is {}, expected VerifyOptions"),
        (lambda: bench_bundle("b", 3), "options is 3, expected BenchOptions or None"),
        (lambda: BenchOptions(rounds="x"), "rounds is 'x', expected int"),
        (lambda: BenchOptions(concurrencies=4), "concurrencies is 4, expected tuple[int, ...]"),
        (lambda: VerifyOptions(checkpoint=3), "checkpoint is 3, expected Path, str or None"),
        (lambda: VerifyOptions(checkpoint="a.pt", margin="1"), "margin is '1', expected float or None"),
        (lambda: ExportOptions(precision=16), "precision is 16, expected 'fp32', 'fp16' or None"),
        (lambda: BuildOptions(optimization_level=None), "optimization_level is None, expected int"),
        (lambda: ServingOptions(True), "max_batch_size is True, expected int"),
        (lambda: Client(8001), "url is 8001, expected str"),
        (lambda: AsyncClient("h:1", deadline_s="1"), "deadline_s is '1', expected float"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_what_was_expected(call: Callable[[], object], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        call()
    assert said in str(caught.value)


def test_values_that_stand_for_others_pass() -> None:
    """A list for a tuple, an integer for a float, and NumPy's numbers."""
    VerifyOptions(checkpoint="a.pt", margin=np.float32(0.5), batch_size=np.int64(2), urls=["grpc://h:1"])
    BenchOptions(concurrencies=[1, 2])
    ExportOptions(frame_interval_s=1)


def test_no_clips_in_a_pass_are_refused() -> None:
    with pytest.raises(SettingError):
        evaluate_checkpoint("a.pt", "list.txt", batch_size=0)
