"""A server's statistics: the batches that it has executed, and the time that requests have waited."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tritonclient.utils import InferenceServerException

from dfer_deploy.errors import ServerError
from dfer_deploy.triton.address import channel_options, parse_url


def executed_batches(url: str, model: str, *, timeout_s: float = 30.0) -> Counter[int]:
    """Count a model's executions since its server started, by the number of clips in one execution.

    Warm-up is not counted. Source: Triton's documentation, "Statistics Extension", ``batch_stats``.

    Args:
        url: address of the server.
        model: name of a model that executes. An ensemble does not have executions of its own.
        timeout_s: seconds to wait for the answer.

    Raises:
        DferDeployError: the server does not answer, or does not have the model.
    """
    batches: Counter[int] = Counter()
    with _client(url, model, timeout_s) as client:
        for version in client.statistics(model):
            for entry in version.get("batch_stats", []):
                batches[int(entry["batch_size"])] += int(entry["compute_infer"]["count"])
    return batches


def queued(url: str, model: str, *, timeout_s: float = 30.0) -> Counter[str]:
    """Count the requests that a model has answered since its server started, and their time in queues.

    An ensemble's own statistics omit the queues of its steps, and so does perf_analyzer's "Server Queue". Source:
    Triton's documentation, "Statistics Extension", ``inference_stats``.

    Args:
        url: address of the server.
        model: name of a model that executes, or of an ensemble whose steps serve no other model meanwhile.
        timeout_s: seconds to wait for each answer.

    Returns:
        The number of ``requests``, and the nanoseconds ``ns`` that they have waited in all queues together.

    Raises:
        DferDeployError: the server does not answer, or does not have the model.
    """
    found: Counter[str] = Counter()
    with _client(url, model, timeout_s) as client:
        steps = client.config(model).get("ensemble_scheduling", {"step": [{"model_name": model}]})["step"]
        for version in client.statistics(model):
            found["requests"] += int(version["inference_stats"]["success"].get("count", 0))
        for step in steps:
            for version in client.statistics(step["model_name"]):
                found["ns"] += int(version["inference_stats"]["queue"].get("ns", 0))
    return found


class _StatisticsClient:
    """The answers of both protocols as dictionaries. Integers of 64 bits may be texts, and zeros may be missing."""

    def __init__(self, client: Any, arguments: dict[str, Any], *, is_grpc: bool) -> None:
        self._client, self._arguments, self._is_grpc = client, arguments, is_grpc

    def statistics(self, model: str) -> list[dict[str, Any]]:
        answer = self._client.get_inference_statistics(model, **self._arguments)
        versions: list[dict[str, Any]] = answer["model_stats"]
        return versions

    def config(self, model: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.get_model_config(model, **self._arguments)
        return answer["config"] if self._is_grpc else answer


@contextlib.contextmanager
def _client(url: str, model: str, timeout_s: float) -> Iterator[_StatisticsClient]:
    address = parse_url(url)
    is_grpc = address.scheme == "grpc"
    client: Any
    if is_grpc:
        from tritonclient import grpc

        client = grpc.InferenceServerClient(address.netloc, channel_args=channel_options(address.netloc))
        arguments: dict[str, Any] = {"as_json": True, "client_timeout": timeout_s}
    else:
        from tritonclient import http

        client = http.InferenceServerClient(address.netloc, connection_timeout=timeout_s, network_timeout=timeout_s)
        arguments = {}
    try:
        yield _StatisticsClient(client, arguments, is_grpc=is_grpc)
    except InferenceServerException as error:
        raise ServerError(f"the server at {url} tells no statistics of {model!r}: {error.message()}") from error
    finally:
        client.close()
