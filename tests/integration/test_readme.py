"""Run the commands that the README and the guides show as they are printed; check only the options of the slow ones."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_reference, tiny_model

from dfer_deploy.commands.demo import write_video
from dfer_deploy.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
"""The README first: it exports the bundle that the guides use."""

SLOW = ("serve", "bench", "stream", "train", "synthetic", "evaluate", "build", "selftest", "describe")
"""Run with small input elsewhere in the tests; the last three need a GPU or a language model as they are printed."""


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of every ``dfer-deploy`` command in the page's console blocks; output has no prompt."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    joined = [re.sub(r"\\\n *", "", block) for block in blocks]
    lines = [line for block in joined for line in block.splitlines() if line.startswith("$ dfer-deploy ")]
    return [shlex.split(line, comments=True)[2:] for line in lines]


def commands() -> list[list[str]]:
    """Return each different command of all pages once: an export does not replace an existing bundle."""
    found: list[list[str]] = []
    for words in (words for page in PAGES for words in commands_of(page)):
        if words not in found:
            found.append(words)
    return found


def test_no_command_lacks_its_prompt() -> None:
    for page in PAGES:
        blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        assert not [line for block in blocks for line in block.splitlines() if line.startswith("dfer-deploy ")], page


def test_the_readme_shows_six_commands_and_fits_two_screens() -> None:
    shown = [words[0] for words in commands_of(ROOT / "README.md")]
    assert shown == ["inspect", "export", "serve", "predict", "verify", "bench"]
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_pages_show_the_whole_way() -> None:
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
