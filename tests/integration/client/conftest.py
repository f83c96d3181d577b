"""A real server for the clients, and clips with their offline answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.runtimes.predictor import Float32, Frames
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer


@pytest.fixture(scope="session")
def client_server(environment: TritonEnvironment, bundle: Bundle) -> Iterator[TritonServer]:
    with TritonServer(environment, bundle.model_repository) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, client_server: TritonServer) -> str:
    return client_server.endpoints.grpc_url if request.param == "grpc" else client_server.endpoints.http_url


@pytest.fixture(scope="session")
def offline(bundle: Bundle) -> Iterator[OnnxRuntimePredictor]:
    with OnnxRuntimePredictor.from_bundle(bundle) as predictor:
        yield predictor


@pytest.fixture(scope="session")
def frames() -> Frames:
    """40 frames of a live stream, uint8 [40, 32, 32, 3]."""
    return np.concatenate(clips_of(3))[:40]


@pytest.fixture(scope="session")
def offline_windows(offline: OnnxRuntimePredictor, frames: Frames) -> Float32:
    """The logits of the window that ends with each frame, [40, C]."""
    windows = []
    for end in range(1, len(frames) + 1):
        window = frames[max(0, end - 16) : end]
        windows.append(np.concatenate([window, np.repeat(window[-1:], 16 - len(window), 0)]))
    return offline.predict(np.stack(windows)).logits
