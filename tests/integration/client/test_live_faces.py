"""Faces at their normal speed while the server is started again. The detector is scripted, everything else is real."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy import Client
from dfer_deploy.answers.clip_answers import StreamAnswer
from dfer_deploy.answers.in_process_stream import InProcessStream
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.clips.faces import Box, Detection
from dfer_deploy.clips.tracks import HOLD_S
from dfer_deploy.live.newest import newest
from dfer_deploy.live.session import FaceAnswer, LiveSession
from dfer_deploy.live.sources import LiveFrame
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor
from dfer_deploy.triton.environment import TritonEnvironment
from dfer_deploy.triton.server import TritonServer

INTERVAL_S = 0.05


class TwoFaces:
    """One at rest and one that goes to and fro; it looks at the number that is written into the picture."""

    name = "two faces"

    def detect(self, image: np.ndarray) -> list[Detection]:
        x = 60 + 10 * float(np.sin(int(image[0, 0, 0]) / 10))
        return [Detection(Box(5, 10, 37, 42), 0.9), Detection(Box(x, 10, x + 32, 42), 0.8)]


def camera() -> Iterator[LiveFrame]:
    pictures = np.concatenate(clips_of(8))  # 32 x 32
    start_s = time.monotonic()
    for number in range(1200):
        image = np.zeros((50, 110, 3), np.uint8)
        image[10:42, 5:37] = pictures[number % 128]
        image[10:42, 50:110] = np.tile(pictures[(number + 60) % 128], (1, 2, 1))[:, :60]
        image[0, 0, 0] = number % 63  # one period of the sine
        time.sleep(max(0.0, start_s + number * INTERVAL_S - time.monotonic()))
        yield LiveFrame(time.monotonic() - start_s, time.monotonic(), image)


@pytest.mark.slow
def test_the_same_faces_go_on_after_a_restart(environment: TritonEnvironment, bundle: Bundle) -> None:
    first = TritonServer(environment, bundle.model_repository, exit_timeout_s=0)
    first.start()
    second = TritonServer(environment, bundle.model_repository, exit_timeout_s=0, grpc_port=first.endpoints.grpc_port)
    starting = threading.Timer(2 * HOLD_S, second.start)  # a server alone may be back sooner than HOLD_S
    seen: list[tuple[LiveFrame, list[FaceAnswer]]] = []
    after = 0
    try:
        with (
            Client(first.endpoints.grpc_url) as client,
            LiveSession(client.stream, 32, TwoFaces(), margin=0.1, interval_s=INTERVAL_S) as session,
            newest(camera(), threading.Event()) as buffer,
        ):
            for frame in buffer.taken():
                seen.append((frame, session.answered(frame)))
                if len(seen) == 20:
                    first.stop()
                    starting.start()
                after += len(seen) > 20
                if after == 10:
                    break
    finally:
        if starting.ident:
            starting.join()
        first.stop()
        second.stop()
    assert [[face.track for face in faces] for _, faces in seen] == [[1, 2]] * 30
    assert np.diff([frame.time_s for frame, _ in seen]).max() > HOLD_S  # of the server's absence
    answers = [[face.answer for face in faces if face.answer] for _, faces in seen]
    assert not any(answer.resumed for both in answers for answer in both)

    with OnnxRuntimePredictor.from_bundle(bundle) as predictor:

        def offline() -> InProcessStream:
            return InProcessStream(predictor, bundle.spec.prompts.class_names)

        with LiveSession(offline, 32, TwoFaces(), margin=0.1, interval_s=INTERVAL_S) as session:
            for (frame, _), both in zip(seen, answers, strict=True):
                expected = [face.answer for face in session.answered(frame)]
                for answer, other in zip(both, expected, strict=True):
                    assert isinstance(other, StreamAnswer)
                    assert answer.frames == other.frames
                    difference = np.array([*answer.logits.values()]) - np.array([*other.logits.values()])
                    assert np.abs(difference).max() < 1e-4
