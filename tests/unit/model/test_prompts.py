import pytest
import torch
from tiny import TEXTS, tiny_model, tiny_spec

from dfer_deploy.checkpoints.class_names import names_for_texts
from dfer_deploy.errors import CheckpointError
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.model.prompts import END_OF_TEXT, START_OF_TEXT, class_tokens, text_from_tokens
from dfer_deploy.specs import ModelSpec, PromptSpec


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "happiness.",
        'a person\'s well-known smile (half), e.g. "this": one/two; three!',
        "ein lächeln",
        "",
    ],
)
def test_decoded_texts_give_the_same_tokens(text: str) -> None:
    tokens = class_tokens(text)
    assert class_tokens(text_from_tokens(tokens)) == tokens


@pytest.mark.parametrize("text", TEXTS)
def test_the_released_texts_come_back_letter_for_letter(text: str) -> None:
    assert text_from_tokens(class_tokens(text)) == text


@pytest.mark.parametrize(("position", "layout"), [("end", "SccccT"), ("front", "STcccc"), ("middle", "SccTcc")])
@pytest.mark.parametrize("class_specific", [True, False])
def test_contexts_stand_where_the_position_says(position: str, layout: str, class_specific: bool) -> None:
    model = tiny_model(position=position, class_specific=class_specific)
    embedding = model.text_encoder.token_embedding
    prompts = model.prompt_learner(embedding)
    for k, text in enumerate(TEXTS):
        tokens = class_tokens(text)
        ctx = model.prompt_learner.ctx[k] if class_specific else model.prompt_learner.ctx
        parts = {"S": embedding(torch.tensor([START_OF_TEXT])), "T": embedding(torch.tensor(tokens))}
        rows, used = [], 0
        for letter in layout:
            if letter == "c":
                rows.append(ctx[used : used + 1])
                used += 1
            else:
                rows.append(parts[letter])
        rows.append(embedding(torch.tensor([END_OF_TEXT])))
        expected = torch.cat(rows)
        assert torch.equal(prompts[k, : len(expected)], expected)
        padding = torch.zeros(prompts.shape[1] - len(expected), dtype=torch.long)
        assert torch.equal(prompts[k, len(expected) :], embedding(padding))
        assert model.prompt_learner.end_of_text[k] == len(expected) - 1


def test_without_contexts_the_text_features_are_clips_own() -> None:
    import open_clip

    torch.manual_seed(0)
    spec = tiny_spec(contexts=0)
    from dfer_deploy.model.clip import build_clip

    clip = build_clip(spec.clip).eval()
    model = DferClip(spec, clip).eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(list(TEXTS))
    torch.testing.assert_close(model.encode_text(), clip.encode_text(tokens, normalize=True))


def test_a_prompt_that_is_too_long_is_named() -> None:
    prompts = PromptSpec(("a", "b"), ("short", "word " * 70), contexts=8)
    with pytest.raises(CheckpointError, match=r"8 contexts has 80 tokens, CLIP reads at most 77"):
        DferClip(ModelSpec(prompts=prompts, clip=tiny_spec().clip))


def test_only_the_text_encoder_is_frozen() -> None:
    frozen = {name.partition(".")[0] for name, p in tiny_model().named_parameters() if not p.requires_grad}
    moving = {name.partition(".")[0] for name, p in tiny_model().named_parameters() if p.requires_grad}
    assert frozen == {"text_encoder"}
    assert moving == {"image_encoder", "temporal_net", "prompt_learner"}


def test_released_texts_have_names_and_others_numbers() -> None:
    assert names_for_texts([*TEXTS, "a photo of fear."]) == ("happiness", "sadness", "anger", "fear")
    assert names_for_texts(["a dog", TEXTS[0]]) == ("class_0", "happiness")
    assert names_for_texts(["anger.", "an expression of anger."]) == ("class_0", "class_1")
