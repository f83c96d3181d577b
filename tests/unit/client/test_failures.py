"""Which kind of failure a library's exception is."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from tritonclient.utils import InferenceServerException

from dfer_deploy.client.failures import Failures
from dfer_deploy.errors import (
    CallError,
    ClipError,
    DeadlineExceededError,
    DferDeployError,
    IncompatibleServerError,
    ModelNotFoundError,
    QueueFullError,
    RequestRefusedError,
    ServerUnavailableError,
)
from dfer_deploy.triton.address import parse_url


def failure(error: Exception, *, answered: bool = False) -> DferDeployError:
    failures = Failures(parse_url("grpc://host:1"))
    if answered:
        with failures.translated("dfer", 3):
            pass
    with pytest.raises(DferDeployError) as caught, failures.translated("dfer", 3):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("message", "status", "kind"),
    [
        ("failed to connect to all addresses", "StatusCode.UNAVAILABLE", ServerUnavailableError),
        ("Socket closed", "StatusCode.UNAVAILABLE", ServerUnavailableError),
        ("CANCELLED", "StatusCode.CANCELLED", ServerUnavailableError),
        ("Exceeds maximum queue size", "StatusCode.UNAVAILABLE", QueueFullError),
        ("Exceeds maximum queue size", "503", QueueFullError),
        ("in ensemble 'dfer', Server is stopping", "503", ServerUnavailableError),
        ("This protocol is restricted, expecting header 'x'", "503", RequestRefusedError),
        ("This protocol is restricted, expecting header 'x'", "StatusCode.UNAVAILABLE", RequestRefusedError),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", DeadlineExceededError),
        ("Request for unknown model: 'x' is not found", "StatusCode.UNAVAILABLE", ModelNotFoundError),
        ("Request for unknown model: 'x' is not found", "400", ModelNotFoundError),
        ("Request for unknown model: 'x' has no available versions", "StatusCode.NOT_FOUND", ServerUnavailableError),
        ("Request for unknown model: 'x' has no available versions", "404", ServerUnavailableError),
        ("in ensemble 'dfer', Stub process 'x_0_0' is not healthy", "StatusCode.INTERNAL", ServerUnavailableError),
        ("batch size 22 for 'dfer_image_encoder', max allowed is 16", "StatusCode.INTERNAL", ServerUnavailableError),
        ("batch size 22 for 'dfer_image_encoder', max allowed is 16", "500", ServerUnavailableError),
        ("unexpected shape", "StatusCode.INVALID_ARGUMENT", RequestRefusedError),
        ("out of memory", "StatusCode.INTERNAL", RequestRefusedError),
        ("", "500", RequestRefusedError),
        (
            "an exception occurred in the client while decoding the response: Invalid value",
            "502",
            ServerUnavailableError,
        ),
        ("client received an empty response from the server.", "429", RequestRefusedError),
    ],
)
def test_answers_of_a_server(message: str, status: str, kind: type[CallError]) -> None:
    error = failure(InferenceServerException(message, status))
    assert isinstance(error, CallError)
    assert type(error) is kind
    assert error.retryable == (kind in (ServerUnavailableError, QueueFullError))
    assert "\n" not in str(error)


@pytest.mark.parametrize("status", ["StatusCode.INVALID_ARGUMENT", "400"])
def test_an_image_that_the_server_cannot_use_is_the_clips_fault(status: str) -> None:
    said = "in ensemble 'dfer_encoded', images[0, 3] cannot be read as an image; expected JPEG, PNG, WEBP"
    assert type(failure(InferenceServerException(said, status))) is ClipError


def test_what_a_proxy_answers_is_told_by_its_status() -> None:
    words = "an exception occurred in the client while decoding the response: Parse error at offset 0: Invalid value"
    assert str(failure(InferenceServerException(words, "401"))).endswith(
        "refused the request to 'dfer': HTTP status 401, not in Triton's words; is there something in between?"
    )


@pytest.mark.parametrize("error", [TimeoutError(), asyncio.TimeoutError()])
def test_time_that_is_over(error: Exception) -> None:
    assert failure(error).code == "deadline_exceeded"
    assert "did not answer within 3 s" in str(failure(error))


@pytest.mark.parametrize("error", [ConnectionResetError(), aiohttp.ServerDisconnectedError(), BrokenPipeError()])
def test_broken_connections(error: Exception) -> None:
    assert failure(error).code == "unavailable"
    assert "no Triton server answers at grpc://host:1" in str(failure(error))
    assert "went away during a request" in str(failure(error, answered=True))


def test_a_bug_is_no_failure_of_the_network() -> None:
    with pytest.raises(ZeroDivisionError), Failures(parse_url("h:1")).translated("dfer", 1):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "said",
    [
        "expected 1 inputs but got 3 inputs for model 'dfer_stream'. Got input(s) ['frames', 'recent_count']",
        "[request id: <id_unknown>] unexpected inference output 'encoder_id' for model 'dfer_stream'",
        "unexpected inference input 'recent_count' for model 'dfer_stream'",
        "unexpected shape for input 'recent_features' for model 'dfer_stream'. Expected [-1,15,512], got [1,15,64]",
    ],
)
def test_a_server_whose_streams_take_other_inputs_serves_another_model(said: str) -> None:
    assert isinstance(failure(InferenceServerException(said, "StatusCode.INVALID_ARGUMENT")), IncompatibleServerError)
