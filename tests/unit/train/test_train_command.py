"""``dfer-deploy train``: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

TINY = """
[data]
cache = true
[model.clip]
embed_dim = 32
vision = { image_size = 32, patch_size = 16, width = 32, layers = 1, head_width = 16 }
text = { width = 16, layers = 1, heads = 1 }
[model.prompts]
class_names = ["a", "b", "c", "d", "e", "f", "g"]
class_texts = ["a", "b", "c", "d", "e", "f", "g"]
[run]
device = "cpu"
tensorboard = false
"""


@pytest.fixture
def train(cli: Callable[..., Any], root: Path, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "tiny.toml").write_text(TINY)
    return lambda *options: cli("train", tmp_path / "tiny.toml", "--data", root, "--epochs", 1, *options)


def test_the_table_and_what_comes_next(train: Callable[..., Any], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "result.json"
    done = train("-o", run, "--seed", 5, "--json", out)
    assert done.exit_code == 0
    assert "UAR" in done.output
    assert "recall g" in done.output
    assert f"dfer-deploy export {run / 'best.pt'}" in done.output
    assert f"verify best.bundle --checkpoint {run / 'best.pt'} --data {run / 'test.txt'}" in done.output
    assert "clips set aside from the training list" in done.output
    assert "optimistic" not in done.output
    result = json.loads(out.read_text())
    assert (result["seed"], result["test_clips"], len(result["losses"])) == (5, 7, 1)
    assert (result["selected_on"], result["optimistic"]) == ("validation", False)


def test_the_printed_evaluation_gives_the_run_s_own_numbers(
    train: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Also where the lists have labels of their own, which no checkpoint knows."""
    labels = {str(index): "abcdefg"[(index + 3) % 7] for index in range(7)}
    settings = [part for label, name in labels.items() for part in ("--set", f"data.label_names.{label}={name}")]
    run, out = tmp_path / "a run", tmp_path / "result.json"
    done = train("-o", run, *settings, "--json", out)
    (line,) = [line for line in done.output.splitlines() if "dfer-deploy evaluate" in line]
    again = tmp_path / "again.json"
    assert cli(*shlex.split(line)[1:], "--json", again).exit_code == 0
    trained, evaluated = json.loads(out.read_text()), json.loads(again.read_text())
    assert evaluated["confusion"] == trained["confusion"]
    assert (evaluated["selected_on"], evaluated["optimistic"]) == ("validation", False)


def test_a_selection_by_the_test_list_is_named_optimistic_everywhere(train: Callable[..., Any], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "result.json"
    assert train("-o", run, "--set", "run.select=test", "--json", out).output.count("optimistic") == 2
    assert json.loads(out.read_text())["optimistic"] is True
    several = train("-o", tmp_path / "several", "--set", "run.select=test", "--seeds", 2, "--json", out)
    assert several.output.count("optimistic") == 2
    assert json.loads(out.read_text())["optimistic"] is True


def test_several_seeds_end_with_their_mean(train: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "summary.json"
    done = train("-o", tmp_path / "runs", "--seed", 3, "--seeds", 2, "--set", "run.select=last", "--json", out)
    assert done.exit_code == 0
    assert "± over seeds" in done.output
    assert "± over folds" not in done.output
    result = json.loads(out.read_text())
    assert result == json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert [(run["fold"], run["seed"]) for run in result["runs"]] == [(1, 3), (1, 4)]
    assert result["over_folds"] == {"uar": None, "war": None}
    assert len((tmp_path / "runs" / "fold_1" / "test.txt").read_text().splitlines()) == 7
    assert f"--data {tmp_path / 'runs' / 'fold_1' / 'test.txt'}" in done.output
    for seed in (3, 4):
        assert (tmp_path / "runs" / "fold_1" / f"seed_{seed}" / "last.pt").exists()


def test_a_folder_with_foreign_files_is_left_alone(train: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    done = train("-o", folder, "--fresh")
    assert done.exit_code == 2
    assert "holds 'thesis.tex' and no run; choose a new or an empty folder" in done.output
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_preview_needs_no_output_and_trains_nothing(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("--preview", tmp_path / "sheet.png")
    assert done.exit_code == 0
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG"
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("option", [("--folds", "all"), ("--seeds", 2), ("--json", "a.json"), ("--fresh",)])
def test_a_preview_does_not_pass_over_options_in_silence(
    train: Callable[..., Any], tmp_path: Path, option: tuple[Any, ...]
) -> None:
    done = train("--preview", tmp_path / "sheet.png", *option)
    assert done.exit_code == 2
    assert "--preview only draws" in done.output


def test_the_data_set_s_own_list_is_not_replaced(train: Callable[..., Any], root: Path) -> None:
    for options in ((), ("--seeds", 1, "--set", "data.test_list=fold_{fold}/test.txt")):
        done = train("-o", root, *options)
        assert done.exit_code == 2
        assert str(root) in done.output.replace("\n", "")
    assert not list(root.glob("**/*.pt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Missing option '-o'"),
        (("-o", "x", "--set", "optim.lr_temporall=1"), "did you mean 'lr_temporal'"),
        (("-o", "x", "--folds", "2"), "the recipe has 1 to 1"),
        (("-o", "x", "--set", "optim.precision=fp16"), 'expected "fp32" or "bf16" there'),
        (("-o", "x", "--set", "optim.accumulate=99"), "expected at least a clip in every part"),
        (("-o", "x", "--set", "optim.ema_decay=1.0"), "optim.ema_decay is 1.0"),
    ],
)
def test_mistakes_are_sentences(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = train(*options)
    assert done.exit_code == 2
    assert message in done.output
    assert not list(tmp_path.rglob("*.pt"))
