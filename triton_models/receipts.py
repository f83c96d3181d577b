"""Receipts: digests by which a client sees that its answer was made from its own request.

Triton 2.51's Python backend gives a model's shared memory to other requests while the process of a paused model still
writes there, so that an answer may be another client's. In the server of the target ``embedded``, every model therefore
returns a digest of each tensor that it read or wrote, and the ensembles pass all of them to the client. The client
compares them with one another and with what it sent and received (``client/receipt_check.py``).

``export`` copies this file beside each ``model.py``. It needs NumPy only.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RECEIPT = "receipt"
"""The name of a model's output with its receipt, uint32 [B, number of tensors]."""


def receipt(tensors: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uint32]:
    """Compute the receipt of tensors [B, …] with a common batch: one digest for each row of each, uint32 [B, len]."""
    return np.stack([digests(tensor) for tensor in tensors], axis=1)


def digests(tensor: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Compute the CRC-32 of each row of a tensor [B, …], as uint32 [B].

    It detects bytes that were exchanged by accident. It does not protect from a person who forges them.

    Args:
        tensor: numbers, or byte strings with the dtype object, whose lengths count too.
    """
    return np.array([_digest(row) for row in tensor], np.uint32)


def _digest(row: npt.NDArray[Any]) -> int:
    if row.dtype != np.object_:
        return zlib.crc32(np.ascontiguousarray(row).view(np.uint8).reshape(-1).data)
    digest = 0
    for item in row.reshape(-1).tolist():
        digest = zlib.crc32(item, zlib.crc32(len(item).to_bytes(8, "little"), digest))
    return digest
