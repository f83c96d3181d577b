"""``verify --report`` and ``report`` write the same page, which names the hash of the JSON behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import ExitCode
from dfer_deploy.files import sha256_of_file


def test_the_page_of_verify_is_the_page_of_its_json(
    cli: Any, bundle: Bundle, own_checkpoint: Path, clip_list: Path, tmp_path: Path
) -> None:
    json_file, at_once, later = tmp_path / "v.json", tmp_path / "at_once.html", tmp_path / "later.html"
    arguments = ("--checkpoint", own_checkpoint, "--data", clip_list, "--in-process")
    result = cli("verify", bundle.path, *arguments, "--json", json_file, "--report", at_once)
    assert result.exit_code == ExitCode.UNDECIDED, result.output
    assert cli("report", json_file, "-o", later, "--data", clip_list).exit_code == ExitCode.DONE
    page = at_once.read_text(encoding="utf-8")
    assert later.read_text(encoding="utf-8") == page
    assert "Undecided" in page
    for digest in (sha256_of_file(json_file), bundle.manifest.checkpoint.sha256, sha256_of_file(clip_list)):
        assert digest in page
