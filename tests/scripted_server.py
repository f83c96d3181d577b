"""A server as a function of calls, for tests of what a client sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dfer_deploy.client.calls import Backoff, Call, Infer, ListModels, ReadConfig, Steps
from dfer_deploy.client.request_steps import ModelRequests
from dfer_deploy.client.retry_policy import RetryPolicy
from dfer_deploy.errors import CallError, RequestRefusedError
from dfer_deploy.triton.address import parse_url

SIZE, LABELS = 8, ("calm", "anger: loud")
CONFIG = {
    "name": "dfer",
    "max_batch_size": 4,
    "input": [{"name": "frames", "dims": ["-1", "8", "8", "3"]}],
    "output": [{"name": "probabilities", "dims": ["2"]}, {"name": "logits", "dims": ["2"]}],
    "ensemble_scheduling": {"step": [{"model_name": "dfer_image_encoder"}, {"model_name": "dfer_temporal_head"}]},
    "parameters": {"frame_interval_s": {"string_value": "0.175"}},
}
STREAM_CONFIG = {
    "name": "dfer_stream",
    "max_batch_size": 4,
    "input": [
        {"name": "frames", "dims": ["1", "8", "8", "3"]},
        {"name": "recent_features", "dims": ["15", "2"]},
        {"name": "recent_count", "dims": ["1"]},
    ],
    "output": [
        {"name": "probabilities", "dims": ["2"]},
        {"name": "logits", "dims": ["2"]},
        {"name": "frame_features", "dims": ["1", "2"]},
        {"name": "encoder_id", "dims": ["1"]},
    ],
}


class Script:
    """A server as a function of calls, with the calls that it got."""

    def __init__(
        self, fail: Callable[[int, Infer], None] | None = None, encoder: Callable[[int], int] = lambda number: 1
    ) -> None:
        """
        Args:
            fail: raises for the inferences that shall fail, of which it gets the number, from 1.
            encoder: the id of the encoder that answers an inference, by its number.
        """
        self.encoder = encoder
        self.calls: list[Call] = []
        self.timeouts: list[float] = []
        self.fail = fail

    def __call__(self, steps: Steps[Any]) -> Any:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Backoff):
                    step = steps.send(None)
                    continue
                self.timeouts.append(step.timeout_s)
                try:
                    answer = self._answer(step.call)
                except CallError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            return done.value

    @property
    def infers(self) -> list[Infer]:
        return [call for call in self.calls if isinstance(call, Infer) and not call.class_count]

    def _answer(self, call: Call) -> Any:
        self.calls.append(call)
        assert len(self.calls) < 1000, "it asks for ever"
        if isinstance(call, ReadConfig):
            return STREAM_CONFIG if call.model == "dfer_stream" else CONFIG
        if isinstance(call, ListModels):
            raise RequestRefusedError("restricted")
        assert isinstance(call, Infer)
        if call.class_count:
            return [np.array([[b"0.9:1:anger: loud", b"0.1:0:calm"]], object)]
        if self.fail:
            self.fail(len(self.infers), call)
        if "recent_features" in call.inputs:
            return self._streamed(call)
        (array,) = call.inputs.values()
        values = np.tile(np.array([[1, 3]], np.float32), (len(array), 1))
        return [values, values / 4]

    def _streamed(self, call: Infer) -> list[Any]:
        """Answers with the mean of the window's features and with that of their encoders; a feature is one number."""
        encoder = self.encoder(len(self.infers))
        (images,) = (array for name, array in call.inputs.items() if not name.startswith("recent"))
        values = [[image[0].flat[0] if isinstance(image[0], np.ndarray) else image[0][0]] for image in images]
        features = np.array([[float(value[0]) * encoder, encoder] for value in values], np.float32)
        counts, recent = call.inputs["recent_count"][:, 0], call.inputs["recent_features"]
        windows = [
            np.concatenate([row[:count], np.repeat(own[None], 16 - count, 0)])
            for row, count, own in zip(recent, counts, features, strict=True)
        ]
        means = np.stack([window.mean(axis=0) for window in windows])
        return [means, means, features[:, None], np.full((len(images), 1), encoder, np.int32)]


def connected(script: Script, url: str = "grpc://host:1", *, retries: int = 3) -> ModelRequests:
    requests = ModelRequests(parse_url(url), "dfer", RetryPolicy(60, retries))
    script(requests.connect())
    return requests
