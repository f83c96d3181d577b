"""The commands that the README shows, run as they stand there; of the slow ones the options are checked."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_reference, tiny_model

from dfer_deploy.commands.demo import write_video
from dfer_deploy.errors import ExitCode

README = Path(__file__).resolve().parents[2] / "README.md"
SLOW = ("serve", "bench", "stream", "train", "synthetic", "evaluate", "build", "selftest", "describe")
"""Run with small input elsewhere in the tests; the last three need a GPU or a language model as they are printed."""


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("dfer-deploy ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_readme_shows_the_whole_way() -> None:
    shown = {words[0] for words in commands()}
    assert {
        "inspect",
        "export",
        "verify",
        "serve",
        "predict",
        "bench",
        "train",
        "build",
        "doctor",
        "configure",
    } <= shown


@pytest.mark.usefixtures("environment")
def test_the_commands_work_as_printed(
    cli: Any, clip_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_reference(Path("model_best.pth"), tiny_model(), best_acc=71.234)
    shutil.copytree(clip_list.parent, "clips")
    shutil.move("clips/list.txt", "test_list.txt")
    write_video(Path("face.mp4"), sorted(Path("clips/000").iterdir()))
    for words in commands():
        if words[0] in SLOW or "--url" in words:
            assert cli(words[0], "--help").exit_code == 0
            options = {word for word in words if word.startswith("--")}
            assert options <= set(re.findall(r"--[a-z-]+", cli(words[0], "--help").output)), words
        else:
            result = cli(*words)
            # Twelve clips are too few for verify to decide.
            expected = ExitCode.UNDECIDED if words[0] == "verify" else ExitCode.DONE
            assert result.exit_code == expected, (words, result.output)
