"""Comparison of receipts: whether an answer was made from this request (``triton_models/receipts.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dfer_deploy.errors import MixedAnswerError
from dfer_deploy.triton_models.receipts import digests

Receipts = Mapping[str, tuple[str, ...]]
"""The outputs of a model that are receipts: by name, the tensors whose digests each holds, in this order."""


def check_receipts(
    model: str, receipts: Receipts, tensors: Mapping[str, npt.NDArray[Any]], received: Mapping[str, Any]
) -> None:
    """Check that all that read or wrote a tensor saw the same bytes.

    Args:
        model: name of the model, for the message.
        receipts: the receipts that the model returns.
        tensors: what the client sent and received, by name, [B, …] each.
        received: the receipts' values by name, uint32 [B, number of tensors]; None for one that is missing.

    Raises:
        MixedAnswerError: a digest differs, or a receipt is missing or has another form.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if len({shape[:1] for shape in shapes.values()}) != 1 or () in shapes.values():
        raise MixedAnswerError(
            f"the model {model!r} answered with another number of clips than it was asked for ({shapes}); ask again"
        )
    seen = {name: digests(tensor) for name, tensor in tensors.items()}
    clips = len(next(iter(seen.values())))
    for output, names in receipts.items():
        values = received.get(output)
        if not isinstance(values, np.ndarray) or values.dtype != np.uint32 or values.shape != (clips, len(names)):
            raise MixedAnswerError(f"the model {model!r} answered without the receipt {output!r}; ask again")
        for name, digest in zip(names, values.T, strict=True):
            if not np.array_equal(seen.setdefault(name, digest), digest):
                raise MixedAnswerError(
                    f"the model {model!r} mixed this request with another one (its {output} does not fit {name!r}), as "
                    "Triton 2.51 does after its processes were paused; ask again"
                )
