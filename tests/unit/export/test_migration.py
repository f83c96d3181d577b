"""Bundles that 0.1.0 wrote are migrated. Those in ``tests/released`` were written by 0.1.0 itself."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_deploy import migrate_bundle
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.errors import BundleError, WriteError
from dfer_deploy.export.repository import check_model_repository
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor

RELEASED = Path(__file__).parents[2] / "released"

FRAMES = ((np.arange(2 * 16 * 32 * 32 * 3, dtype=np.uint32) * 2654435761) >> 16 & 255).astype(np.uint8)
"""Two clips of pixels that look random, uint8 [2, 16, 32, 32, 3] after reshaping."""

LOGITS_OF_0_1_0 = {
    "embedded": [[-5.72136, 10.90924, -8.04322], [-5.73296, 10.90656, -8.04539]],
    "tensorrt": [[-5.72113, 10.90963, -8.04336], [-5.7328, 10.90661, -8.0455]],
}
"""What the code of 0.1.0 answered with its own bundles."""


def released(folder: Path, target: str) -> Path:
    with tarfile.open(RELEASED / f"bundle-0.1.0-{target}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"bundle-0.1.0-{target}"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("target", ["embedded", "tensorrt"])
def test_a_bundle_of_0_1_0_answers_as_before(target: str, tmp_path: Path) -> None:
    old = released(tmp_path, target)
    before = files(old)
    result = migrate_bundle(old, tmp_path / "new")
    bundle = open_bundle(tmp_path / "new")
    check_model_repository(bundle)
    assert files(old) == before, "the old bundle is left unchanged"
    assert result.to_dict() == {"bundle": str(bundle.path), "old_format": "dfer-deploy-bundle/3", "left_out": []}
    manifest, values = bundle.manifest, json.loads(before["manifest.json"])
    assert manifest.parity == values["parity"]
    assert manifest.tools == values["tools"] | {"migrated by dfer-deploy": manifest.tools["migrated by dfer-deploy"]}
    assert manifest.checkpoint.sha256 == values["checkpoint"]["sha256"]
    with OnnxRuntimePredictor.from_bundle(bundle) as predictor:
        logits = predictor.predict(FRAMES.reshape(2, 16, 32, 32, 3)).logits
    tolerance = 1e-4 if manifest.precision == "fp32" else 2e-2
    np.testing.assert_allclose(logits, LOGITS_OF_0_1_0[target], rtol=0, atol=tolerance)


def test_an_old_bundle_names_the_way(tmp_path: Path) -> None:
    old = released(tmp_path, "embedded")
    with pytest.raises(BundleError, match=f"dfer-deploy migrate {old} -o NEW"):
        open_bundle(old)


@pytest.mark.parametrize("number", ["1", "2", "5", "x", ""])
def test_formats_that_nobody_released_are_refused(number: str, tmp_path: Path) -> None:
    old = released(tmp_path, "embedded")
    values = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(values | {"format": f"dfer-deploy-bundle/{number}"}))
    for call in (lambda: migrate_bundle(old, tmp_path / "new"), lambda: open_bundle(old)):
        with pytest.raises(BundleError) as refusal:
            call()
        assert "dfer-deploy migrate" not in str(refusal.value)
    assert not (tmp_path / "new").exists()


def test_a_bundle_of_today_is_written_anew(bundle: Bundle, tmp_path: Path) -> None:
    """What is repaired so are files of the repository; a development version may have written others."""
    old = Path(shutil.copytree(bundle.path, tmp_path / "old"))
    (old / "model_repository" / "dfer_preprocess" / "1" / "model.py").write_text("raise SystemExit\n")
    new = migrate_bundle(old, tmp_path / "new").bundle
    check_model_repository(new)
    assert {**files(new.path), "manifest.json": b""} == {**files(bundle.path), "manifest.json": b""}


def test_older_versions_and_engines_are_named(tmp_path: Path) -> None:
    old = released(tmp_path, "tensorrt")
    values = json.loads((old / "manifest.json").read_text())
    for model in (old / "model_repository").iterdir():
        (model / "1").rename(model / "2")
        (model / "1").mkdir()
    (old / "manifest.json").write_text(json.dumps(values | {"version": 2}))
    (old / "engines").mkdir()
    for name in ("engines.json", "a.timing_cache"):
        (old / "engines" / name).write_text("{}")
    result = migrate_bundle(old, tmp_path / "new")
    assert result.left_out == ("version 1 of the models", "the TensorRT engines")
    assert result.bundle.manifest.version == 2
    assert [path.name for path in (result.bundle.path / "engines").iterdir()] == ["a.timing_cache"]
    assert open_bundle(result.bundle.path).engines is None


def test_a_damaged_graph_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    old = released(tmp_path, "embedded")
    graph = old / "onnx" / "dfer_temporal_head.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BundleError):
        migrate_bundle(old, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == [old.name]


def test_nothing_is_written_into_the_old_bundle(tmp_path: Path) -> None:
    old = released(tmp_path, "embedded")
    before = files(old)
    with pytest.raises(WriteError):
        migrate_bundle(old, old / "new")
    assert files(old) == before


def test_nothing_is_replaced(bundle: Bundle, tmp_path: Path, cli: Any) -> None:
    (tmp_path / "new").mkdir()
    result = cli("migrate", bundle.path, "-o", tmp_path / "new")
    assert result.exit_code == 2
    assert list((tmp_path / "new").iterdir()) == []
