import pytest
import torch

from dfer_deploy.errors import CheckpointError
from dfer_deploy.model.clip import build_clip, clip_spec_from_open_clip, pretrained_clip
from dfer_deploy.specs import ClipSpec


def test_the_default_spec_is_vit_b_32_quickgelu() -> None:
    assert clip_spec_from_open_clip("ViT-B-32-quickgelu") == ClipSpec()


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-B-16", "ViT-H-14-quickgelu", "ViT-bigG-14", "ViT-M-32-alt"])
def test_specs_build_what_open_clip_builds(name: str) -> None:
    import open_clip

    with torch.device("meta"):
        ours = build_clip(clip_spec_from_open_clip(name))
        theirs = open_clip.CLIP(**open_clip.get_model_config(name))
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert ours.visual.transformer.resblocks[0].attn.num_heads == theirs.visual.transformer.resblocks[0].attn.num_heads


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_other_architectures_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="is not a plain CLIP vision transformer"):
        clip_spec_from_open_clip(name)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="knows no model 'ViT-Z'"):
        clip_spec_from_open_clip("ViT-Z")


def test_weights_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(open_clip, "create_model", no_network)
    with pytest.raises(
        CheckpointError, match=r"could not be loaded \(Name or service not known\); they need an internet"
    ):
        pretrained_clip("ViT-B-32-quickgelu", "openai")


def test_weights_that_are_unknown_or_of_the_other_activation_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"no weights 'opnai' of 'ViT-B-32-quickgelu' \(did you mean 'openai'\)"):
        pretrained_clip("ViT-B-32-quickgelu", "opnai")
    # They would be computed with the wrong activation, silently.
    with pytest.raises(CheckpointError, match=r"'openai' were trained with QuickGELU, .* = 'ViT-B-32-quickgelu'"):
        pretrained_clip("ViT-B-32", "openai")
