import math

import pytest
import torch
from tiny import tiny_model

from dfer_deploy.model.temporal import TemporalMean, build_temporal_net
from dfer_deploy.specs import TemporalSpec


def test_depth_zero_is_the_mean_over_frames() -> None:
    features = torch.randn(2, 5, 8)
    network = build_temporal_net(8, TemporalSpec(depth=0))
    assert isinstance(network, TemporalMean)
    assert not list(network.parameters())
    torch.testing.assert_close(network(features), features.mean(dim=1))


@pytest.mark.parametrize("time", [1, 9, 16])
def test_one_block_is_the_formula_of_the_paper(time: int) -> None:
    """Written out with plain tensor operations, as the reference's einsums have it."""
    torch.manual_seed(1)
    network = build_temporal_net(64, TemporalSpec(depth=1)).double()
    f = torch.randn(3, time, 64, dtype=torch.float64)
    block = network.blocks[0]

    def norm(x: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    x = torch.cat([network.cls_token.expand(3, 1, 64), f], dim=1) + network.pos_embedding[:, : time + 1]
    qkv = norm(x, block.norm_attention) @ block.attention.to_qkv.weight.T
    q, k, v = (part.reshape(3, time + 1, 8, 64) for part in qkv.chunk(3, dim=-1))
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) * 64**-0.5).softmax(dim=-1)
    attended = torch.einsum("bhij,bjhd->bihd", weights, v).reshape(3, time + 1, 512)
    x = x + attended @ block.attention.to_out.weight.T + block.attention.to_out.bias
    h = norm(x, block.norm_mlp) @ block.mlp_in.weight.T + block.mlp_in.bias
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    x = x + h @ block.mlp_out.weight.T + block.mlp_out.bias
    torch.testing.assert_close(network(f), x[:, 0], rtol=1e-10, atol=1e-10)


def test_logits_are_cosines_over_the_temperature() -> None:
    model = tiny_model()
    images = torch.rand(2, 16, 3, 32, 32)
    with torch.inference_mode():
        video = model.temporal_net(model.encode_frames(images))
        text = model.encode_text()
        cosines = torch.nn.functional.cosine_similarity(video[:, None], text[None], dim=-1)
        torch.testing.assert_close(model(images), cosines / 0.01, rtol=1e-4, atol=1e-3)
