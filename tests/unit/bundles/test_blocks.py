import pytest
from tiny import tiny_spec

from dfer_deploy.bundles.blocks import checked_blocks, encoder_blocks, head_blocks
from dfer_deploy.errors import BundleError


def test_blocks_are_named_in_the_order_of_the_computation() -> None:
    assert encoder_blocks(tiny_spec()) == ("patch_embedding", "encoder.0", "encoder.1", "projection")
    assert head_blocks(tiny_spec(depth=2)) == ("head.0", "head.1")
    assert head_blocks(tiny_spec(depth=0)) == ()


def test_names_are_put_in_order_and_unknown_ones_refused_with_the_nearest() -> None:
    spec = tiny_spec()
    assert checked_blocks(["head.0", "encoder.1", "head.0"], spec) == ("encoder.1", "head.0")
    with pytest.raises(BundleError, match=r"no block 'encoder\.2'; did you mean 'encoder\.1'\?"):
        checked_blocks(["encoder.2"], spec)
    with pytest.raises(BundleError, match=r"no block 'xyz'; its blocks are patch_embedding, encoder\.0"):
        checked_blocks(["xyz"], spec)
    with pytest.raises(BundleError, match="no block 'classifier'"):
        checked_blocks(["classifier"], spec)
