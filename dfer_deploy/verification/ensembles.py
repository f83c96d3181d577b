"""Verify the ensembles for streams and encoded images by comparison with the verified ensemble for clips.

The answers of the ensemble for clips and of its two models are verified already. The server decodes encoded images, so
their answers must equal those of the clip. A stream encodes one frame at a time, which rounds differently than encoding
16 frames together. So the features of single frames are compared with the cost of rounding, and the answers with those
of the temporal head for the same features.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from dfer_deploy.answers.clip_answers import Answer
from dfer_deploy.client import Client
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.reading import Clip
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.specs import MAX_FRAMES, Contract
from dfer_deploy.verification.comparison import largest
from dfer_deploy.verification.limits import Limits, Rounding

_NOT_YET_FULL = MAX_FRAMES // 2
"""Number of frames after which a stream's window still repeats the newest one."""


@dataclass(frozen=True)
class EnsembleAnswers:
    """The outcome of verifying the other ensembles.

    Attributes:
        differences: largest difference of a logit from the ensemble for clips, by the ensemble's name; infinite if an
            answer is not finite.
        failures: one sentence for each answer that exceeds a limit.
    """

    differences: dict[str, float]
    failures: tuple[str, ...]


def ensemble_answers(
    client: Client,
    contract: Contract,
    clips: Iterable[tuple[Annotation, Clip]],
    limits: Limits,
    rounding: Rounding,
    *,
    same_runtime: bool,
) -> EnsembleAnswers:
    """Ask all ensembles about the same frames, and compare their answers.

    Args:
        client: client of the server.
        contract: contract of the served bundle.
        clips: at least one clip, each with 16 frames.
        limits: the accepted differences.
        rounding: what rounding to the precision of ``limits`` costs the model.
        same_runtime: whether the server runs onnxruntime on a CPU, so that two runs of one graph must agree.

    Raises:
        DferDeployError: the server refuses to answer, or its answer is not finite.
    """
    asked = _Asked(client, contract, limits, same_runtime)
    for annotation, clip in clips:
        asked.ask(annotation.name, clip)
    # Each may differ from PyTorch by the tolerance of rounding, so they may differ from each other by twice as much.
    moved, twice = np.stack(asked.moved), replace(rounding, features=2 * rounding.features)
    found = Rounding.of(moved, np.zeros(1, np.float32))
    failures = [f"{contract.stream.name}, one frame at a time: {f}" for f in limits.rounding_failures(found, twice)]
    return EnsembleAnswers(asked.differences, (*asked.failures, *failures))


class _Asked:
    """The differences so far, and how far features moved when frames were encoded one at a time."""

    def __init__(self, client: Client, contract: Contract, limits: Limits, same_runtime: bool) -> None:
        self._client, self._contract, self._limits = client, contract, limits
        self._head_limit = limits.same_graphs if same_runtime else limits.head_logits
        self._clip_limit = limits.same_graphs if same_runtime else limits.logits
        others = (contract.stream, contract.encoded, contract.encoded_stream)
        self.differences = {graph.name: 0.0 for graph in others}
        self.failures: list[str] = []
        self.moved: list[Float32] = []

    def ask(self, name: str, clip: Clip) -> None:
        """Ask all ensembles about one clip of 16 frames, and compare their answers."""
        client, contract = self._client, self._contract
        padded = sample_indices(_NOT_YET_FULL)
        expected = client.predict_frames(np.stack([clip[padded], clip])).logits
        together = client.encode(clip[np.newaxis])[0]
        alone = np.concatenate([client.encode(frame[np.newaxis, np.newaxis])[0] for frame in clip])
        self.moved.append(alone - together)
        of_head = client.classify(np.stack([alone[padded], alone])).logits
        with client.stream() as stream:
            pushed = [stream.push(frame) for frame in clip]
        images = [_png(frame) for frame in clip]
        with client.stream() as stream:
            of_images = [stream.push(image) for image in images]
        head = (contract.temporal_head.name, self._head_limit)
        ensemble = (contract.ensemble.name, self._clip_limit)
        after = f"{name} after {MAX_FRAMES} frames"
        early = f"{name} after {_NOT_YET_FULL} frames"
        self._compare(contract.stream.name, early, pushed[_NOT_YET_FULL - 1], expected[0], of_head[0], *head)
        self._compare(contract.stream.name, after, pushed[-1], expected[1], of_head[1], *head)
        self._compare(contract.encoded_stream.name, after, of_images[-1], expected[1], of_head[1], *head)
        self._compare(contract.encoded.name, after, client.predict(images), expected[1], expected[1], *ensemble)

    def _compare(
        self, name: str, which: str, answer: Answer, of_clip: Float32, due: Float32, other: str, limit: float
    ) -> None:
        """Compare an answer with that of the ensemble for clips, and with the answer ``other`` that it must equal."""
        logits, probabilities = _values(answer)
        self.differences[name] = max(self.differences[name], largest(logits - of_clip))
        softmax_error = largest(probabilities - softmax(logits[np.newaxis])[0])
        self.failures += [
            f"{name}: {which}: {what} differs by {value:.3g}, at most {accepted:g} is accepted"
            for what, value, accepted in (
                (f"a logit from {other}'s", largest(logits - due), limit),
                ("a probability from the softmax of its logits", softmax_error, self._limits.probabilities),
            )
            if value > accepted
        ]


def _png(frame: Clip) -> bytes:
    """Return a frame as PNG, which is lossless, so that the server sees the same pixels."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="PNG")
    return file.getvalue()


def _values(answer: Answer) -> tuple[Float32, Float32]:
    """Return the logits and probabilities of an answer, float32 [C] each."""
    logits, probabilities = (
        np.array(list(values.values()), np.float32) for values in (answer.logits, answer.probabilities)
    )
    return logits, probabilities
