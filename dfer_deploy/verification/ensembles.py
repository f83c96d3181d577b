"""The ensembles beside the one for clips, for streams and for encoded images, held against what is verified.

Verified are the answers of the ensemble for clips and of its two models. Images are decoded by the server, so their
answers must be those of the clip. A stream shows the encoder one frame at a time, which rounds otherwise than sixteen
together: so the features of single frames are compared with what rounding costs the model, and the answers with those
of the temporal head for the very same features.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from dfer_deploy.client import Client
from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.clips.reading import Clip
from dfer_deploy.clips.sampling import sample_indices
from dfer_deploy.inference.answers import Answer
from dfer_deploy.metrics import softmax
from dfer_deploy.runtimes.predictor import Float32
from dfer_deploy.specs import MAX_FRAMES, Contract
from dfer_deploy.verification.comparison import largest
from dfer_deploy.verification.limits import Limits, Rounding

_NOT_YET_FULL = MAX_FRAMES // 2
"""After so many frames a stream's window still repeats the newest one."""


@dataclass(frozen=True)
class EnsembleAnswers:
    """How the other ensembles answered.

    Attributes:
        differences: largest difference of a logit from the ensemble's for clips, by the name of the ensemble; infinite
            where one is not finite.
        failures: sentences, one for each answer that leaves a limit.
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
    """Asks all ensembles about the same frames.

    Args:
        client: of the server.
        contract: of the bundle that it serves.
        clips: each 16 frames, at least one.
        limits: what is accepted.
        rounding: what rounding to the precision of ``limits`` costs the model.
        same_runtime: the server runs onnxruntime on a CPU, so that two runs of one graph may not differ.

    Raises:
        DferDeployError: the server refuses to answer, or its answer is not finite.
    """
    head_limit = limits.same_graphs if same_runtime else limits.head_logits
    clip_limit = limits.same_graphs if same_runtime else limits.logits
    reference, head, stream_name, encoded_name, encoded_stream_name = (
        graph.name
        for graph in (
            contract.ensemble,
            contract.temporal_head,
            contract.stream,
            contract.encoded,
            contract.encoded_stream,
        )
    )
    differences = {stream_name: 0.0, encoded_name: 0.0, encoded_stream_name: 0.0}
    failures: list[str] = []
    moved: list[Float32] = []
    for annotation, clip in clips:
        padded = sample_indices(_NOT_YET_FULL)
        expected = client.predict_frames(np.stack([clip[padded], clip])).logits
        together = client.encode(clip[np.newaxis])[0]
        alone = np.concatenate([client.encode(frame[np.newaxis, np.newaxis])[0] for frame in clip])
        of_head = client.classify(np.stack([alone[padded], alone])).logits
        with client.stream() as stream:
            pushed = [stream.push(frame) for frame in clip]
        images = [_png(frame) for frame in clip]
        with client.stream() as stream:
            of_images = [stream.push(image) for image in images]
        encoded = client.predict(images)
        for name, answer, of_clip, other, due, most, frames in (
            (stream_name, pushed[_NOT_YET_FULL - 1], expected[0], head, of_head[0], head_limit, _NOT_YET_FULL),
            (stream_name, pushed[-1], expected[1], head, of_head[1], head_limit, MAX_FRAMES),
            (encoded_stream_name, of_images[-1], expected[1], head, of_head[1], head_limit, MAX_FRAMES),
            (encoded_name, encoded, expected[1], reference, expected[1], clip_limit, MAX_FRAMES),
        ):
            logits, probabilities = _values(answer)
            differences[name] = max(differences[name], largest(logits - of_clip))
            failures += [
                f"{name}: {annotation.name} after {frames} frames: {what} differs by {value:.3g}, at most {accepted:g} "
                "is accepted"
                for what, value, accepted in (
                    (f"a logit from {other}'s", largest(logits - due), most),
                    (
                        "a probability from the softmax of its logits",
                        largest(probabilities - softmax(logits[np.newaxis])[0]),
                        limits.probabilities,
                    ),
                )
                if value > accepted
            ]
        moved.append(alone - together)
    # Both are as far from PyTorch as rounding may take them, so they may differ by twice as much.
    found, twice = (
        Rounding.of(np.stack(moved), np.zeros(1, np.float32)),
        replace(rounding, features=2 * rounding.features),
    )
    failures += [f"{stream_name}, one frame at a time: {failure}" for failure in limits.rounding_failures(found, twice)]
    return EnsembleAnswers(differences, tuple(failures))


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
