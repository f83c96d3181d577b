"""Which batches a server has really executed."""

from __future__ import annotations

import contextlib
from collections import Counter

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from dfer_deploy.client.address import channel_options, parse_url
from dfer_deploy.errors import DferDeployError


def executed_batches(url: str, model: str, *, timeout_s: float = 30.0) -> Counter[int]:
    """The executions of a model since its server started, by their batch (clips in one execution).

    Warm-up is not counted. Source: Triton's documentation, "Statistics Extension", ``batch_stats``.

    Args:
        url: of the server, gRPC.
        model: one that executes; an ensemble has no executions of its own.
        timeout_s: for the answer.

    Raises:
        DferDeployError: the server does not answer or has no such model.
    """
    netloc = parse_url(url).netloc
    with contextlib.closing(InferenceServerClient(netloc, channel_args=channel_options(netloc))) as client:
        try:
            answer = client.get_inference_statistics(model, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise DferDeployError(f"the server at {url} tells no statistics of {model!r}: {error.message()}") from error
    batches: Counter[int] = Counter()
    for version in answer.model_stats:
        for entry in version.batch_stats:
            batches[entry.batch_size] += entry.compute_infer.count
    return batches
