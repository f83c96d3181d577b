"""A baseline is a file of strangers: what is damaged in it is told in one sentence."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model

from dfer_deploy.errors import ResultError
from dfer_deploy.specs import Precision
from dfer_deploy.verification.baseline import FORMAT, Baseline, load_baseline, save_baseline
from dfer_deploy.verification.limits import LIMITS, Rounding

SPEC = tiny_model().spec
FEATURES = np.full((2, 16, SPEC.clip.embed_dim), 1, np.float32)
LOGITS = np.full((2, SPEC.prompts.num_classes), -2, np.float32)
ROUNDING = {precision: Rounding(1.0, 2.0) for precision in LIMITS}
ROUNDING_JSON = {precision: vars(cost) for precision, cost in ROUNDING.items()}
HEADER = {
    "rounding": ROUNDING_JSON,
    "format": FORMAT,
    "checkpoint_sha256": "ab" * 32,
    "spec": SPEC.to_dict(),
}


def header(**changes: Any) -> np.ndarray[Any, Any]:
    return np.array(json.dumps(HEADER | changes))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    names, hashes = ["a", "b"], ["01" * 32, "02" * 32]
    save_baseline(
        tmp_path / "b.npz",
        Baseline(
            "ab" * 32,
            SPEC.to_dict(),
            names,
            hashes,
            FEATURES,
            LOGITS,
            ROUNDING,
        ),
    )
    found = load_baseline(tmp_path / "b.npz", SPEC)
    assert (found.checkpoint_sha256, found.clip_names, found.clip_hashes) == ("ab" * 32, names, hashes)
    assert found.frame_features.dtype == found.logits.dtype == np.float32
    assert (found.frame_features == 1).all()
    assert (found.logits == -2).all()


@pytest.mark.parametrize(
    "damage",
    [
        {"logits": LOGITS * np.float32(np.nan)},
        {"frame_features": FEATURES + np.float32(np.inf)},
        {"frame_features": FEATURES.astype("U1")},
        {"logits": LOGITS.astype(complex)},
        {"logits": LOGITS.astype(np.float64) + 1e300},
        {"logits": LOGITS.astype("datetime64[s]")},
        {"logits": LOGITS[0, 0]},
        {"clip_names": np.array(5)},
        {"clip_names": np.array("ab")},
        {"clip_names": np.array([1, 2])},
        {"clip_names": np.array([["a"], ["b"]])},
        {"clip_hashes": np.array(5)},
        {"clip_hashes": np.array(["01" * 32])},
        {"header": np.array("[]")},
        {"header": np.array("[" * 100_000)},
        {"header": header(checkpoint_sha256=3)},
        {"header": header(checkpoint_sha256="\ud800" * 64)},
        {"header": header(format="dfer-deploy-baseline/9")},
        {"header": header(rounding={})},
        {"header": header(rounding={precision: {"features": -1, "head_logits": 1} for precision in LIMITS})},
    ],
)
def test_damage_is_told(tmp_path: Path, damage: dict[str, Any]) -> None:
    whole = {
        "header": header(),
        "clip_names": np.array(["a", "b"]),
        "clip_hashes": np.array(["01" * 32, "02" * 32]),
        "frame_features": FEATURES,
        "logits": LOGITS,
    }
    np.savez_compressed(tmp_path / "b.npz", **whole)  # type: ignore[arg-type]
    assert load_baseline(tmp_path / "b.npz", SPEC).clip_names == ["a", "b"]
    np.savez_compressed(tmp_path / "b.npz", **(whole | damage))  # type: ignore[arg-type]
    with pytest.raises(ResultError, match=r"b\.npz (is not a baseline|holds)"):
        load_baseline(tmp_path / "b.npz", SPEC)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"features": math.inf}, "moves its features by inf, and none is over 1"),
        ({"head_logits": math.inf}, "moves its logits by inf, and none is over 2"),
        ({"features": 1e308}, "moves its features by 1e+308"),
        ({"features": 1.001}, "moves its features by 1.001, and none is over 1"),
        ({"head_logits": 2.001}, "moves its logits by 2.001, and none is over 2"),
        ({"head_logits": math.nan}, "the error head_logits is nan"),
    ],
)
def test_a_cost_of_rounding_that_would_let_every_error_pass_is_refused(
    tmp_path: Path, precision: Precision, cost: dict[str, float], message: str
) -> None:
    names, hashes = ["a", "b"], ["01" * 32, "02" * 32]
    right = Baseline("ab" * 32, SPEC.to_dict(), names, hashes, FEATURES, LOGITS, ROUNDING)
    save_baseline(tmp_path / "b.npz", right)
    with np.load(tmp_path / "b.npz") as content:
        arrays = dict(content)
    costs = ROUNDING_JSON | {precision: ROUNDING_JSON[precision] | cost}
    np.savez_compressed(tmp_path / "b.npz", **arrays | {"header": header(rounding=costs)})  # type: ignore[arg-type]
    with pytest.raises(ResultError, match=f"b.npz is not a baseline .*{re.escape(message)}"):
        load_baseline(tmp_path / "b.npz", SPEC)
