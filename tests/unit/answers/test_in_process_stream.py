from __future__ import annotations

import numpy as np
import pytest
from tiny import clips_of

from dfer_deploy.answers.clip_answers import Answer
from dfer_deploy.answers.in_process_stream import FrameStream, InProcessStream
from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.errors import SettingError
from dfer_deploy.runtimes.onnxruntime_predictor import OnnxRuntimePredictor


def logits(answer: Answer) -> np.ndarray:
    return np.array(list(answer.logits.values()))


def test_every_answer_is_the_offline_one_for_the_last_16_frames(bundle: Bundle) -> None:
    frames = np.concatenate(clips_of(3))[:40]
    labels = bundle.spec.prompts.class_names
    with OnnxRuntimePredictor.from_bundle(bundle) as predictor:
        stream: FrameStream = InProcessStream(predictor, labels)
        other = InProcessStream(predictor, labels)
        for index, frame in enumerate(frames):
            answer = stream.push(frame)
            other.push(frames[-1 - index])
            window = frames[max(0, index - 15) : index + 1]
            padded = np.concatenate([window, np.repeat(window[-1:], 16 - len(window), 0)])
            expected = predictor.predict(padded[np.newaxis])
            assert np.abs(logits(answer) - expected.logits[0]).max() < 1e-4
            assert answer.expression == labels[int(expected.logits[0].argmax())]
            assert answer.frames == len(window)
        stream.close()
        with pytest.raises(SettingError, match="the stream is closed"):
            stream.push(frames[0])


def test_answers_cannot_be_changed() -> None:
    answer = Answer("calm", 1.0, {"calm": 1.0}, {"calm": 3.0})
    with pytest.raises(AttributeError):
        answer.confidence = 0.5  # type: ignore[misc]
