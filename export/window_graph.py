"""The graph that makes a stream's window from its newest frame and the features that the client remembers.

It has no weights. The server does not store the state of a stream, so any replica can answer any frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WindowGraph(nn.Module):
    """A module that joins the features of the newest frame to those before it, and pads by repeating the newest."""

    def __init__(self, frames: int, encoder_id: int) -> None:
        """Fix the length of a window and the id of its encoder.

        Args:
            frames: N, the number of frames of a window.
            encoder_id: id of the encoder whose features are joined; see ``dfer_deploy.specs.encoder_id``.
        """
        super().__init__()
        places = torch.arange(frames - 1, dtype=torch.int32)[None, :]
        self.places = nn.Parameter(places, requires_grad=False)
        self.of_encoder = nn.Parameter(torch.tensor([[encoder_id]], dtype=torch.int32), requires_grad=False)

    def forward(self, frame_features: Tensor, recent_features: Tensor, recent_count: Tensor) -> tuple[Tensor, Tensor]:
        """Make the windows of B streams.

        Args:
            frame_features: features of the newest frame, fp32 [B, 1, L].
            recent_features: features of the frames before it, oldest first, fp32 [B, N − 1, L]. Rows from the count on
                may hold anything, even NaN.
            recent_count: how many of the rows count, int32 [B, 1]. It is clamped to 0 … N − 1.

        Returns:
            The window's features, fp32 [B, N, L], and the encoder's id, int32 [B, 1].
        """
        # The features are selected, not multiplied, so that NaN in an unused row has no effect. The comparison clamps
        # the count.
        is_recent = (self.places < recent_count)[..., None]
        window = torch.where(is_recent, recent_features, frame_features)
        return torch.cat([window, frame_features], dim=1), self.of_encoder.expand(recent_count.shape[0], 1)
