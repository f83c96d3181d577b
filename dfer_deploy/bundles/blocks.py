"""The named blocks of the two graphs whose precision can be chosen separately.

``patch_embedding``, ``encoder.0`` … and ``projection`` form the image encoder; ``head.0`` … are the temporal blocks.
The matrix product that computes the logits, ``classifier``, is always fp32.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from dfer_deploy.errors import BundleError
from dfer_deploy.specs import ModelSpec


def encoder_blocks(spec: ModelSpec) -> tuple[str, ...]:
    """List the names of the image encoder's blocks, in the order of the computation."""
    layers = (f"encoder.{index}" for index in range(spec.clip.vision.layers))
    return ("patch_embedding", *layers, "projection")


def head_blocks(spec: ModelSpec) -> tuple[str, ...]:
    """List the names of the temporal head's blocks, in the order of the computation; none at depth 0."""
    return tuple(f"head.{index}" for index in range(spec.temporal.depth))


def checked_blocks(names: Iterable[str], spec: ModelSpec) -> tuple[str, ...]:
    """Check the names of blocks, and return each once, in the order of the computation.

    Raises:
        DferDeployError: the model does not have a block of this name. The error suggests the nearest name.
    """
    known = (*encoder_blocks(spec), *head_blocks(spec))
    wanted = set(names)
    for name in sorted(wanted - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its blocks are {', '.join(known)}"
        raise BundleError(f"the model has no block {name!r}; {hint}")
    return tuple(name for name in known if name in wanted)
