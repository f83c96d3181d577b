"""What pip installs: real files behind the links of the checkout, and data files with them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "build", "demo", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_real_files_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        graphs = archive.read("dfer_deploy/export/graphs.py")
    assert graphs == (ROOT / "export" / "graphs.py").read_bytes()
    for name in (
        "dfer_deploy/checkpoints/prompts.toml",
        "dfer_deploy/py.typed",
        "dfer_deploy/report/report.html",
        "dfer_deploy/train/recipes/synthetic.toml",
        "dfer_deploy/triton_models/ensemble.pbtxt",
        "dfer_deploy/triton_models/onnx_model/model.py",
    ):
        assert name in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dfer_deploy"}
    assert not any("tests" in name for name in names)


def test_the_installed_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True
    )
    script = f"""
import sys
sys.path.insert(0, {str(site)!r})
import dfer_deploy, dfer_deploy.export.pipeline, dfer_deploy.triton_models
assert {str(site)!r} in dfer_deploy.__file__
from dfer_deploy.train.recipe import recipe_from_toml
print(recipe_from_toml("synthetic").model.prompts.class_names[0])
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "happiness", done.stderr
