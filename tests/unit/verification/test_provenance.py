"""Drawn data says that it is drawn, wherever its lists lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.files import sha256_of_file
from dfer_deploy.verification.baseline import Baseline
from dfer_deploy.verification.provenance import Link, provenance, synthetic_note


def truth(sha256: str) -> Baseline:
    nothing = np.zeros(0, np.float32)
    return Baseline(sha256, {}, [], [], nothing, nothing, {})


def test_the_chain_names_every_file_by_its_hash(bundle: Bundle, clip_list: Path) -> None:
    found = provenance(bundle, truth("cd" * 32), None, [clip_list], [])
    chain = found.chain
    made = ["checkpoint", *["ONNX"] * 3, *["config"] * 8, "manifest"]
    assert [link.stage for link in chain] == [*made, "compared checkpoint", "list"]
    assert chain[0].sha256 == bundle.manifest.checkpoint.sha256
    assert chain[-2].sha256 == "cd" * 32
    for link in chain[1:-2]:
        assert sha256_of_file(bundle.path / link.file) == link.sha256
    assert chain[-1] == Link("list", clip_list.name, sha256_of_file(clip_list))
    assert found.synthetic is None


def test_a_baseline_is_named_beside_the_checkpoint_that_it_speaks_for(bundle: Bundle, tmp_path: Path) -> None:
    baseline = tmp_path / "b.npz"
    baseline.write_bytes(b"answers")
    chain = provenance(bundle, truth("cd" * 32), baseline, [], []).chain
    assert chain[-2:] == (
        Link("compared checkpoint", "", "cd" * 32),
        Link("baseline", "b.npz", sha256_of_file(baseline)),
    )


def test_pooled_verifications_are_named(bundle: Bundle, clip_list: Path, tmp_path: Path) -> None:
    fold = tmp_path / "fold1.json"
    fold.write_text("{}")
    chain = provenance(bundle, truth("cd" * 32), None, [clip_list], [], [fold]).chain
    assert chain[-1] == Link("pooled verification", "fold1.json", sha256_of_file(fold))


def test_a_drawn_data_set_is_known_by_its_lists_and_by_its_clips(tmp_path: Path) -> None:
    (tmp_path / "faces" / "frames" / "a").mkdir(parents=True)
    (tmp_path / "faces" / "dataset.json").write_text(json.dumps({"note": "drawn"}))
    (tmp_path / "list.txt").touch()
    assert synthetic_note([tmp_path / "faces" / "test.txt"]) == "drawn"
    assert synthetic_note([tmp_path / "list.txt", tmp_path / "faces" / "frames" / "a"]) == "drawn"
    assert synthetic_note([tmp_path / "list.txt"]) is None


@pytest.mark.parametrize("content", ["", "[]", '{"note": 3}', "{", "[" * 100_000])
def test_another_dataset_json_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    assert synthetic_note([tmp_path / "test.txt"]) is None
