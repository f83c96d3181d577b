"""The parts of the two graphs whose precision can be chosen one by one, by name.

``patch_embedding``, ``encoder.0`` … and ``projection`` are the image encoder, ``head.0`` … the temporal blocks. The
product that gives the logits, ``classifier``, has no choice: it is fp32 always.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from dfer_deploy.errors import BundleError
from dfer_deploy.specs import ModelSpec


def encoder_blocks(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the image encoder's blocks, in the order of the computation."""
    layers = (f"encoder.{index}" for index in range(spec.clip.vision.layers))
    return ("patch_embedding", *layers, "projection")


def head_blocks(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the temporal head's blocks, in the order of the computation; none at depth 0."""
    return tuple(f"head.{index}" for index in range(spec.temporal.depth))


def checked_blocks(names: Iterable[str], spec: ModelSpec) -> tuple[str, ...]:
    """Return the named blocks, each once and in the order of the computation.

    Raises:
        DferDeployError: the model has no such block; with the nearest name.
    """
    known = (*encoder_blocks(spec), *head_blocks(spec))
    wanted = set(names)
    for name in sorted(wanted - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its blocks are {', '.join(known)}"
        raise BundleError(f"the model has no block {name!r}; {hint}")
    return tuple(name for name in known if name in wanted)
