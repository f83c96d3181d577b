"""The temporal head with its memory outside: the graph of a live stream for servers that keep the state themselves.

One frame goes in, the answer for the window that it ends comes out, and with it the state for the next frame. Triton's
onnxruntime and tensorrt backends keep such a state per sequence. Source: Triton's user guide, "Implicit State
Management".
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from dfer_deploy.export.graphs import TemporalHeadGraph
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.specs import MAX_FRAMES, Precision


class StreamHeadGraph(nn.Module):
    """Features of a new frame and the state before it to the answer and the state after it.

    Before 16 frames have come, the window is those frames and then the newest repeated; from 16 on it is the last 16.
    The state stays in fp32 whatever the precision of the matrix products.
    """

    def __init__(self, model: DferClip, precision: Precision, keep_fp32: Collection[str] = ()) -> None:
        super().__init__()
        self.head = TemporalHeadGraph(model, precision, keep_fp32)
        places = torch.arange(MAX_FRAMES, dtype=torch.float32)[None, :, None]
        self.places = nn.Parameter(places, requires_grad=False)

    def forward(
        self, frame_features: Tensor, start: Tensor, state_in: Tensor, count_in: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of B streams.

        Args:
            frame_features: of the new frame, fp32 [B, 1, L].
            start: fp32 [B, 1], 1 where the frame is a stream's first, else 0.
            state_in: the window before, fp32 [B, 16, L]; anything, even NaN, where ``start`` is 1.
            count_in: fp32 [B, 1], how many frames the stream has had, at most 16.

        Returns:
            Logits and probabilities, fp32 [B, C], and the new state and count.
        """
        # Everything is chosen, nothing multiplied away: what a server leaves in a fresh state need not be finite.
        count = torch.where(start > 0.5, torch.zeros_like(count_in), count_in)
        count = count[..., None]
        moved = torch.cat([state_in[:, 1:], frame_features], dim=1)
        before = torch.where(count > MAX_FRAMES - 0.5, moved, state_in)
        window = torch.where(self.places < count, before, frame_features)
        logits, probabilities = self.head(window)
        return logits, probabilities, window, (count[..., 0] + 1).clamp(max=MAX_FRAMES)
