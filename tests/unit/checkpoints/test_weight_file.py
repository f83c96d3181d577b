"""CLIP's weights from files: what is accepted is loaded exactly, everything else is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from tiny import tiny_spec

from dfer_deploy.checkpoints import weight_file
from dfer_deploy.checkpoints.weight_file import clip_from_file, openai_digests
from dfer_deploy.errors import CheckpointError
from dfer_deploy.files import sha256_of_file
from dfer_deploy.model.clip import build_clip

SPEC = tiny_spec().clip


@pytest.fixture(scope="module")
def trained() -> CLIP:
    torch.manual_seed(5)
    return build_clip(SPEC)


def same(found: CLIP, trained: CLIP) -> bool:
    expected = trained.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_state_dictionaries_and_safetensors_are_loaded(trained: CLIP, tmp_path: Path) -> None:
    state = trained.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "trainer.pt")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    for name in ("plain.pt", "trainer.pt", "weights.safetensors"):
        assert same(clip_from_file(SPEC, tmp_path / name), trained)


class _Archive(torch.nn.Module):
    """What OpenAI's files are: a program with CLIP's parameters and three numbers of its own."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.visual, self.transformer = torch.nn.Module(), torch.nn.Module()
        for name, tensor in [*clip.state_dict().items(), ("input_resolution", torch.tensor(32))]:
            *path, last = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_buffer(last, tensor.half() if tensor.is_floating_point() else tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_openai_s_archive_is_opened_only_by_its_published_digest(
    trained: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(_Archive(trained)).save(str(path))

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a TorchScript archive of unknown origin was opened")

    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", opened)
        with pytest.raises(CheckpointError, match="is a TorchScript archive, which is a program"):
            clip_from_file(SPEC, path)
    monkeypatch.setattr(weight_file, "openai_digests", lambda: {sha256_of_file(path)})
    found = clip_from_file(SPEC, path).state_dict()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(found[name], tensor.half().float())


def test_the_published_digests_are_those_of_open_clip_s_table() -> None:
    # ViT-B/32, the paper's backbone, as it stands in its address.
    assert "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af" in openai_digests()


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"visual.proj": _Malicious()}, "is refused"),
        ({"visual.proj": torch.zeros(3, 3)}, r"has 'visual.proj' of shape \[3, 3\], the recipe's backbone \[64, 64\]"),
        ({"weight": torch.zeros(3)}, "lacks 'ln_final.bias'"),
        ({"logit_bias": torch.zeros(1)}, "holds 'logit_bias'"),
        ({"visual.proj": torch.full((64, 64), torch.nan)}, "not finite in 'visual.proj'"),
        ([1, 2], "holds a list"),
    ],
)
def test_other_files_are_named(
    trained: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, dict) and "weight" not in content:
        content = trained.state_dict() | content
    torch.save(content, "a.pt")
    with pytest.raises(CheckpointError, match=message):
        clip_from_file(SPEC, Path("a.pt"))
    assert not Path("was-here").exists()


def test_a_missing_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="which is not a file"):
        clip_from_file(SPEC, tmp_path / "none.pt")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="is not a safetensors file or is damaged"):
        clip_from_file(SPEC, tmp_path / "a.safetensors")


def test_safetensors_are_read_where_files_cannot_be_mapped(
    trained: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, path)

    def fails(path: Path) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("safetensors.torch.load_file", fails)
    assert same(clip_from_file(SPEC, path), trained)
