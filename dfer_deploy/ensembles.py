"""The ensembles beside the one for clips, for streams and for encoded images, held against that one on its server.

What is verified are its answers. The others run the same encoder, but a stream has a head of its own, and images are
decoded by the server.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dfer_deploy.answers import Answer
from dfer_deploy.client import Client
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.reading import Clip
from dfer_deploy.comparison import largest
from dfer_deploy.limits import Limits
from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.specs import MAX_FRAMES, Contract

_NOT_YET_FULL = MAX_FRAMES // 2
"""After so many frames a stream's window still repeats the newest one."""


@dataclass(frozen=True)
class EnsembleAnswers:
    """How the other ensembles answered.

    Attributes:
        reference: name of the ensemble for clips.
        differences: largest difference of a logit by the name of the ensemble; infinite where one is not finite.
        failures: sentences, one for each answer that leaves a limit.
    """

    reference: str
    differences: dict[str, float]
    failures: tuple[str, ...]

    def __str__(self) -> str:
        most = max(self.differences.values())
        return f"streams and encoded images answer as {self.reference} does, within {most:.2g} logits"


def ensemble_answers(
    client: Client, contract: Contract, clips: Iterable[tuple[Annotation, Clip]], limits: Limits, *, same_runtime: bool
) -> EnsembleAnswers:
    """Asks all ensembles about the same frames.

    A stream runs the encoder on one frame at a time, which rounds differently: with onnxruntime on a CPU right bundles
    differ by up to 3.2e-4 of a logit in fp16 (tiny models, the reference implementation's checkpoint, ViT-B/32 with
    random weights) and not at all in fp32. On a GPU this was never measured.

    Args:
        client: of the server.
        contract: of the bundle that it serves.
        clips: each 16 frames, at least one.
        limits: what is accepted, ``same_graphs`` or ``logits``, and ``probabilities``.
        same_runtime: the server runs onnxruntime on a CPU, so that two runs of one graph may not differ.

    Raises:
        DferDeployError: the server refuses to answer, or its answer is not finite.
    """
    limit = limits.same_graphs if same_runtime else limits.logits
    reference, stream_name, encoded_name = (g.name for g in (contract.ensemble, contract.stream, contract.encoded))
    differences = {stream_name: 0.0, encoded_name: 0.0}
    failures: list[str] = []
    for annotation, clip in clips:
        padded = clip[np.minimum(np.arange(MAX_FRAMES), _NOT_YET_FULL - 1)]
        of_padded, of_clip = client.predict_frames(np.stack([padded, clip])).logits
        with client.stream() as stream:
            pushed = [stream.push(frame) for frame in clip]
        encoded = client.predict([_png(frame) for frame in clip])
        for name, answer, expected, frames in (
            (stream_name, pushed[_NOT_YET_FULL - 1], of_padded, _NOT_YET_FULL),
            (stream_name, pushed[-1], of_clip, MAX_FRAMES),
            (encoded_name, encoded, of_clip, MAX_FRAMES),
        ):
            logits, probabilities = _values(answer)
            difference = largest(logits - expected)
            differences[name] = max(differences[name], difference)
            failures += [
                f"{name}: {annotation.name} after {frames} frames: {what} differs by {value:.3g}, at most {most:g} is "
                "accepted"
                for what, value, most in (
                    (f"a logit from {reference}'s", difference, limit),
                    (
                        "a probability from the softmax of its logits",
                        largest(probabilities - softmax(logits[np.newaxis])[0]),
                        limits.probabilities,
                    ),
                )
                if value > most
            ]
    return EnsembleAnswers(reference, differences, tuple(failures))


def _png(frame: Clip) -> bytes:
    """Without loss, so that the server sees the same pixels."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="PNG")
    return file.getvalue()


def _values(answer: Answer) -> tuple[Float32, Float32]:
    """Logits and probabilities, float32 [C] each."""
    logits, probabilities = (
        np.array(list(values.values()), np.float32) for values in (answer.logits, answer.probabilities)
    )
    return logits, probabilities
