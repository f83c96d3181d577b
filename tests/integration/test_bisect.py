"""A model that fp16 breaks: the export says where, ``verify --bisect`` says what to type, and that export holds."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny import overflow_in_fp16, tiny_model

from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.errors import BundleError
from dfer_deploy.plain_data import plain


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "a.pt", overflow_in_fp16(tiny_model(), "encoder.1"), {})
    return tmp_path / "a.pt"


def test_the_command_that_bisect_prints_mends_the_export(
    cli: Any, overflowing: Path, clip_list: Path, tmp_path: Path
) -> None:
    refused = cli("export", overflowing, "-o", tmp_path / "half", "--precision", "fp16")
    assert refused.exit_code == 2
    assert "encoder.1" in refused.output
    assert "--keep-fp32 encoder.1" in refused.output
    assert not (tmp_path / "half").exists()

    assert cli("export", overflowing, "-o", tmp_path / "b").exit_code == 0
    arguments = ("--checkpoint", overflowing, "--data", clip_list, "--in-process", "--json", tmp_path / "v.json")
    result = cli("verify", tmp_path / "b", *arguments, "--bisect")
    # The bundle itself is fp32 and right; 12 clips are too few to decide.
    assert result.exit_code == 3, result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["localisation"]["where"] == "no block alone leaves its tolerance"
    assert report["localisation"]["suspect"] is None
    assert "blocks: all 6 are within their tolerance on 3 clips" in result.output
    # What was compared is printed before the bisection, which takes minutes.
    assert result.output.index("too few clips to decide on 12 clips") < result.output.index("export 1, in fp32: none")
    found = report["bisection"]
    assert found["keep_fp32"] == ["encoder.1"]
    assert [bool(trial["failures"]) for trial in found["trials"]] == [True, False, False]
    assert f"next:\n  {found['command']}\n" in result.output

    program, *words = shlex.split(found["command"])
    assert program == "dfer-deploy"
    exported = cli(*words)
    assert exported.exit_code == 0, exported.output
    assert "fp16, in fp32: encoder.1" in exported.output
    mixed = open_bundle(Path(words[words.index("-o") + 1]))
    assert (mixed.manifest.precision, mixed.manifest.keep_fp32) == ("fp16", ("encoder.1",))
    assert cli("verify", mixed.path, *arguments).exit_code == 3
    comparison = json.loads((tmp_path / "v.json").read_text())["comparisons"][0]
    assert comparison["name"] == "onnxruntime mixed"
    assert comparison["failures"] == []
    again = cli(*words)
    assert "is up to date" in again.output


def test_clips_that_cannot_be_read_are_no_reason_to_keep_blocks(
    cli: Any, overflowing: Path, clip_list: Path, tmp_path: Path
) -> None:
    """They fail the verification whatever the precision is."""
    lines = [line.split() for line in clip_list.read_text().splitlines()]
    readable = [f"{clip_list.parent}/{folder} {n} {label}" for folder, n, label in lines if label != "2"]
    (tmp_path / "list.txt").write_text("\n".join([*readable, f"{tmp_path}/absent 16 2"]))
    assert cli("export", overflowing, "-o", tmp_path / "b").exit_code == 0
    result = cli(
        "verify", tmp_path / "b", "--checkpoint", overflowing, "--data", tmp_path / "list.txt", "--in-process",
        "--bisect", "--json", tmp_path / "v.json",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["failures"][-1].startswith("no clip of ")
    assert report["bisection"]["keep_fp32"] == ["encoder.1"]


def test_a_failed_verification_says_which_block(
    cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    moved = tiny_model()
    moved.image_encoder.transformer.resblocks[0].mlp.c_proj.weight.data *= 1.05
    save_checkpoint(tmp_path / "moved.pt", moved, {})
    assert cli("export", tmp_path / "moved.pt", "-o", tmp_path / "b").exit_code == 0
    result = cli(
        "verify", tmp_path / "b", "--checkpoint", own_checkpoint, "--data", clip_list, "--in-process",
        "--json", tmp_path / "v.json", "--bisect", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "where: encoder.0" in result.output
    report = json.loads((tmp_path / "v.json").read_text())
    assert [layer["block"] for layer in report["localisation"]["layers"] if not layer["within"]] == ["encoder.0"]
    assert report["failures"][0] == report["localisation"]["where"]
    assert report["localisation"]["suspect"] == "encoder.0"
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("</span> suspect</span>") == 1
    assert report["bisection"]["command"] in page
    assert 1e4 < report["localisation"]["roundings"]["fp32"] < 1e6
    # A fresh export of the right checkpoint holds in fp16: the bundle is at fault, not its precision.
    assert report["bisection"]["keep_fp32"] == []
    assert "--keep-fp32" not in report["bisection"]["command"]


def test_wrong_blocks_are_refused(cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path) -> None:
    wrong = cli("export", own_checkpoint, "-o", tmp_path / "b", "--keep-fp32", "encoder.7")
    assert wrong.exit_code == 2
    assert "'encoder.7'" in wrong.output
    both = cli("export", own_checkpoint, "-o", tmp_path / "b", "--precision", "fp32", "--keep-fp32", "encoder.0")
    assert both.exit_code == 2
    assert "omit one" in both.output
    assert list(tmp_path.iterdir()) == []
    baseline = cli("verify", tmp_path, "--baseline", tmp_path / "x", "--data", clip_list, "--bisect")
    assert baseline.exit_code == 2
    assert "--bisect exports the checkpoint again" in baseline.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_fp32": ["encoder.9"], "precision": "fp16"}, "no block 'encoder.9'"),
        ({"keep_fp32": ["encoder.0"]}, "with the precision fp32, expected fp16"),
        ({"keep_fp32": ["head.0", "encoder.0"], "precision": "fp16"}, r"expected \['encoder.0', 'head.0'\]"),
        ({"keep_fp32": "encoder.0"}, "keep_fp32 is 'encoder.0', expected a list"),
    ],
)
def test_manifests_that_lie_about_their_blocks_are_refused(
    bundle: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(plain(manifest | change)))
    with pytest.raises(BundleError):
        open_bundle(tmp_path, check_files=False)
