import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import save_reference, tiny_model

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.checkpoints.checkpoint import save_checkpoint
from dfer_deploy.cli import COMMANDS
from dfer_deploy.errors import install_command


def _loaded_by(code: str) -> set[str]:
    script = f"import sys; {code}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_help_loads_no_stage() -> None:
    loaded = _loaded_by("from dfer_deploy.cli import group; group.main(['--help'], standalone_mode=False)")
    assert not loaded & {"torch", "numpy", "onnxruntime", "tritonclient", "av", "PIL"}


@pytest.mark.parametrize(
    "module",
    [
        "dfer_deploy.specs",
        "dfer_deploy.bundles.bundle",
        "dfer_deploy.client.triton_predictor",
        "dfer_deploy.triton.server",
        "dfer_deploy.export.repository",
        "dfer_deploy.export.configure",
        "dfer_deploy.commands.predict",
        "dfer_deploy.commands.serve",
        "dfer_deploy.commands.verify",
        "dfer_deploy.commands.bench",
    ],
)
def test_what_serves_and_asks_needs_no_torch(module: str) -> None:
    assert not _loaded_by(f"import {module}") & {"torch", "open_clip", "onnx", "tensorrt", "tensorrt_rtx"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli: Any, name: str) -> None:
    result = cli(name, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("stage", ["train", "export", "triton_models"])
def test_stages_refuse_their_bare_names(stage: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", f"import {stage}"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"import this package as dfer_deploy.{stage}" in done.stderr


def test_inspect_prints_all_of_it(cli: Any, tmp_path: Path) -> None:
    path = save_reference(tmp_path / "a.pth", tiny_model(depth=3, contexts=5))
    result = cli("inspect", path, "--json", tmp_path / "a.json")
    assert result.exit_code == 0
    for text in (
        "reference",
        "ViT, 2 layers, width 64, 1 head, patch 16, image 32 × 32",
        "3 layers, 8 heads of 64, MLP 1024",
        "5, one set per class",
        "end (assumed, not in the file; --prompt-position)",
        "66.67 % WAR",
        "unknown (not in the file; export --frame-interval-s)",
        "[5] a smiling mouth, raised cheeks, wrinkled eyes, and arched eyebrows.",
        "sadness",
    ):
        assert text in result.output
    assert json.loads((tmp_path / "a.json").read_text())["spec"] == tiny_model(depth=3, contexts=5).spec.to_dict()
    assert "[2] an expression of anger. [3]" in cli("inspect", path, "--prompt-position", "middle").output


@pytest.mark.parametrize(
    ("classifier", "shown", "absent"),
    [
        (
            "linear",
            ["linear head on the video feature", "happiness", "next: dfer-deploy export"],
            ["contexts", "tears"],
        ),
        ("image_conditioned_text", ["Co-CoOp; cannot be exported", "[4] tears"], ["next: dfer-deploy export"]),
    ],
)
def test_inspect_tells_the_classifier(
    cli: Any, tmp_path: Path, classifier: str, shown: list[str], absent: list[str]
) -> None:
    save_checkpoint(tmp_path / "a.pt", tiny_model(classifier=classifier, depth=0), {})
    output = cli("inspect", tmp_path / "a.pt").output
    assert all(text in output for text in shown)
    assert not any(text in output for text in absent)


def test_a_users_mistake_is_one_sentence_and_exit_code_2(cli: Any, tmp_path: Path, bundle: Bundle) -> None:
    for arguments in (
        ("inspect", tmp_path / "none.pth"),
        ("export", tmp_path / "none.pth"),
        ("predict", "--bundle", tmp_path, "x.mp4"),
        ("predict", "x.mp4"),
        ("predict", "--bundle", bundle.path, tmp_path / "none.mp4"),
        ("verify", bundle.path, "--data", tmp_path / "list.txt"),
        ("bench", bundle.path, "--concurrency", "0,x"),
    ):
        result = cli(*arguments)
        assert result.exit_code == 2, arguments
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("predict", "--bundle", "b", ""), "the argument after b"),
        (("predict", "--bundle", "", "a.mp4"), "the argument after --bundle"),
        (("export", "a.pt", "--output="), "--output"),
        (("stream", "", "--bundle", "b"), "the argument after stream"),
        (("predict", "a\x1b[31m", ""), r"the argument after a\x1b[31m"),
    ],
)
def test_an_empty_argument_is_no_path(cli: Any, arguments: tuple[str, ...], what: str) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert f"Error: {what} is empty, as an unset shell variable is" in result.output


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, cli: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for module in ("commands.inspect", "api.inspect_checkpoint"):
        monkeypatch.delitem(sys.modules, f"dfer_deploy.{module}", raising=False)
    for name in [
        name for name in sys.modules if name.startswith(("dfer_deploy.model", "dfer_deploy.checkpoints.checkpoint"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "dfer_deploy.checkpoints.reference_checkpoint", raising=False)
    result = cli("inspect", tmp_path / "x.pth")
    assert result.exit_code == 2
    assert install_command("cpu") in result.output


def test_predict_answers_for_the_good_inputs_and_names_the_bad(
    cli: Any, bundle: Bundle, clip_list: Path, tmp_path: Path
) -> None:
    good = [clip_list.parent / "000", clip_list.parent / "001"]
    result = cli("predict", "--bundle", bundle.path, good[0], tmp_path / "no", good[1], "--json", tmp_path / "p.json")
    assert result.exit_code == 2
    assert str(tmp_path / "no") in result.output.replace("\n", "")
    answers = json.loads((tmp_path / "p.json").read_text())
    assert [answer["input"] for answer in answers["results"]] == [str(path) for path in good]
    assert sum(answers["results"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert len(answers["failures"]) == 1


def test_json_does_not_replace_what_it_is_about(
    cli: Any, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "a.pt"
    checkpoint.write_bytes(own_checkpoint.read_bytes())
    for command in (("inspect", checkpoint), ("evaluate", checkpoint, "--data", clip_list), ("export", checkpoint)):
        result = cli(*command, "--json", checkpoint)
        assert result.exit_code == 2
        assert checkpoint.name in result.output.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert checkpoint.read_bytes() == own_checkpoint.read_bytes()
