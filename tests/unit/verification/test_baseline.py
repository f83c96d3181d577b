"""Saved answers: what comes back, and what is not believed. Each refused file differs in one thing from a right one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import clips_of, tiny_spec

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.errors import ResultError
from dfer_deploy.verification.baseline import Baseline, clip_hash, load_baseline, save_baseline
from dfer_deploy.verification.limits import LIMITS, Rounding

SHA256 = "c0" * 32
SPEC = tiny_spec()
CLIPS = clips_of(3)


def annotation(name: str) -> Annotation:
    return Annotation(name, Path(name), 16, 0)


@pytest.fixture
def baseline() -> Baseline:
    rng = np.random.default_rng(0)
    return Baseline(
        checkpoint_sha256=SHA256,
        spec=SPEC.to_dict(),
        clip_names=["films/ä", "b", "c"],
        clip_hashes=[clip_hash(clip) for clip in CLIPS],
        frame_features=rng.standard_normal((3, 16, 64)).astype(np.float32),
        logits=rng.standard_normal((3, 3)).astype(np.float32),
        rounding={precision: Rounding(1.0, 1.0) for precision in LIMITS},
    )


def test_what_was_saved_answers_for_the_clips_that_are_asked_in_their_order(baseline: Baseline, tmp_path: Path) -> None:
    save_baseline(tmp_path / "b.npz", baseline)
    loaded = load_baseline(tmp_path / "b.npz", SPEC)
    assert (loaded.checkpoint_sha256, loaded.spec) == (SHA256, SPEC.to_dict())
    features, logits = loaded.answer([annotation("c"), annotation("films/ä")], CLIPS[[2, 0]])
    np.testing.assert_array_equal(features, baseline.frame_features[[2, 0]])
    np.testing.assert_array_equal(logits, baseline.logits[[2, 0]])
    assert (features.dtype, logits.dtype) == (np.float32, np.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["b.npz"]


def test_a_clip_is_known_by_its_pixels_and_not_by_how_they_lie_in_memory() -> None:
    clip = CLIPS[0]
    assert clip_hash(clip) == hashlib.sha256(clip.tobytes()).hexdigest()
    assert clip_hash(np.asfortranarray(clip)) == clip_hash(clip)
    assert clip_hash(clip[..., ::-1]) != clip_hash(clip)


def test_another_clip_or_one_other_pixel_is_refused(baseline: Baseline) -> None:
    with pytest.raises(ResultError, match="'d'"):
        baseline.answer([annotation("b"), annotation("d")], CLIPS[1:])
    changed = CLIPS.copy()
    changed[2, 15, 31, 31, 2] ^= 1
    baseline.answer([annotation("b")], changed[1:2])
    with pytest.raises(ResultError, match="'c'"):
        baseline.answer([annotation("b"), annotation("c")], changed[1:])


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as content:
        return dict(content)


def with_header(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | {"header": np.array(json.dumps(json.loads(str(content["header"])) | changes))}


@pytest.mark.parametrize(
    "change",
    [
        with_header(format="dfer-deploy-baseline/0"),
        with_header(spec=tiny_spec(depth=2).to_dict()),
        with_header(spec=None),
        lambda content: content | {"frame_features": content["frame_features"][:, :15]},
        lambda content: content | {"logits": content["logits"][:, :2]},
        lambda content: content | {"logits": content["logits"][:2]},
        lambda content: content | {"clip_hashes": content["clip_hashes"][:2]},
        lambda content: {name: array for name, array in content.items() if name != "logits"},
    ],
    ids=["format", "model", "no model", "frames", "classes", "clips", "hashes", "no logits"],
)
def test_what_does_not_fit_is_refused(
    baseline: Baseline, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    path = tmp_path / "b.npz"
    save_baseline(path, baseline)
    np.savez_compressed(path, **arrays(path))
    load_baseline(path, SPEC)
    np.savez_compressed(path, **change(arrays(path)))
    with pytest.raises(ResultError):
        load_baseline(path, SPEC)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed_and_nothing_large_is_unpacked(baseline: Baseline, tmp_path: Path) -> None:
    path, traces = tmp_path / "b.npz", tmp_path / "traces"
    save_baseline(path, baseline)
    np.savez_compressed(path, **arrays(path) | {"clip_names": np.array([Bomb(traces)] * 3, dtype=object)})
    with pytest.raises(ResultError):
        load_baseline(path, SPEC)
    assert not traces.exists()
    # Eight megabytes of zeros in a file of a few kilobytes; answers do not shrink like that.
    save_baseline(
        path,
        dataclasses.replace(
            baseline,
            clip_names=["a"] * 2000,
            clip_hashes=["0"] * 2000,
            frame_features=np.zeros((2000, 16, 64), np.float32),
            logits=np.zeros((2000, 3), np.float32),
            rounding={precision: Rounding(0.0, 0.0) for precision in LIMITS},
        ),
    )
    with pytest.raises(ResultError, match="it claims 8"):
        load_baseline(path, SPEC)


@pytest.mark.parametrize("size", [0, 200, -1])
def test_a_damaged_or_missing_file_is_refused(baseline: Baseline, tmp_path: Path, size: int) -> None:
    path = tmp_path / "b.npz"
    save_baseline(path, baseline)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ResultError):
        load_baseline(path, SPEC)
    with pytest.raises(ResultError):
        load_baseline(tmp_path / "none.npz", SPEC)
