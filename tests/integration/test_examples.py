"""The programs of docs/examples run as they are printed, with small input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import clips_of, write_frames
from videos import numbered, write_timed_video

from dfer_deploy.api.serving import served_bundle
from dfer_deploy.bundles.bundle import Bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def run(name: str, *arguments: object, folder: Path, code: int = 0) -> str:
    """Run an example in a folder and return what it printed."""
    environment = os.environ | {"MPLBACKEND": "agg"}
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}"' not in source] == []


def test_a_checkpoint_is_exported_and_verified(own_checkpoint: Path, clip_list: Path, tmp_path: Path) -> None:
    # Twelve clips are too few to decide, which is the exit code 3.
    printed = run("export_and_verify.py", own_checkpoint, clip_list, "b", folder=tmp_path, code=3)
    assert "onnxruntime fp32: UAR" in printed
    assert (tmp_path / "b" / "manifest.json").exists()


@pytest.mark.usefixtures("environment")
def test_a_server_is_asked(bundle: Bundle, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", clips_of(1, frames=4)[0])
    with served_bundle(bundle) as endpoints:
        printed = run("ask_a_server.py", endpoints.grpc_url, tmp_path / "frames", folder=tmp_path)
    assert "a clip: " in printed
    assert " 4 frames: " in printed


def test_a_video_becomes_a_table_and_a_picture(bundle: Bundle, tmp_path: Path) -> None:
    write_timed_video(tmp_path / "a.mkv", numbered(40), range(0, 4000, 100))
    printed = run("video_to_table.py", bundle.path, "a.mkv", "none", folder=tmp_path)
    assert "expression" in printed
    header, *rows = (tmp_path / "a.csv").read_text().splitlines()
    assert header.startswith("track,start_s,end_s,frames,detection,expression,confidence,")
    assert rows
    assert (tmp_path / "a-0.png").stat().st_size > 1000


def test_a_folder_of_videos_is_trained_on(tmp_path: Path) -> None:
    for name in ("joy", "anger"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for number in range(6):
            frames = np.full((4, 32, 32, 3), 40 * number, np.uint8)
            write_timed_video(tmp_path / "videos" / name / f"{number}.mkv", frames, range(0, 400, 100))
    small = ("optim.epochs=1", "optim.warmup_epochs=0", "model.clip.vision.layers=1", "run.select=last")
    run("train_on_a_folder.py", "videos", "run", *small, folder=tmp_path)
    assert (tmp_path / "run" / "last.pt").exists()
