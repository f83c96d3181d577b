"""Translation of the client libraries' exceptions into errors of one sentence, which state whether to try again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tritonclient.utils import InferenceServerException

from dfer_deploy.errors import (
    CallError,
    ClipError,
    DeadlineExceededError,
    IncompatibleServerError,
    ModelNotFoundError,
    QueueFullError,
    RequestRefusedError,
    ServerUnavailableError,
)
from dfer_deploy.triton.address import Address

_OTHER_STREAM = (
    r"expected \d+ inputs but got \d+ inputs|unexpected inference (in|out)put '(recent_|encoder_id|\w*receipt')|"
    r"unexpected shape for input 'recent_features'"
)
"""Matches Triton's messages about inputs or outputs that differ from the configuration that the client has read."""

_LOST = (
    r"Stub process .* is not healthy|Failed to copy the output tensor|Failed to (obtain|acquire) the health mutex|"
    r"batch size \d+ for '.*', max allowed is \d+"
)
"""Matches what Triton's Python backend says of requests that failed for its own reasons: a model that stood still, or a
batch of several requests that Triton's batcher made too large (python_backend, "scheduler has done something badly
wrong"). A single request that is too large is refused before, with another message."""

_REFUSED_IMAGE = r"\bimages\[\d+, \d+\] "
"""Matches the beginning of the sentence with which a bundle's preprocessing refuses one encoded image
(``triton_models/preprocess``). Triton's codes do not distinguish it from other refusals."""

_CONNECTION_LIBRARIES = ("rapidjson", "aiohttp")
"""Modules whose exceptions mean a broken connection (aiohttp) or a response that is not Triton's (rapidjson)."""


class Failures:
    """Translates what the client libraries raise for one server into ``CallError``, or ``ClipError`` for an image."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._answered = False

    @contextlib.contextmanager
    def translated(self, what: str, deadline_s: float) -> Iterator[None]:
        """Translate the errors of one request to the model ``what`` with a deadline of ``deadline_s`` seconds.

        Raises:
            ClipError: the server cannot use one of the encoded images.
            CallError: the request fails for another reason.
        """
        try:
            yield
        except InferenceServerException as error:
            raise self._refusal(what, str(error.status() or ""), str(error.message() or ""), deadline_s) from error
        except TimeoutError as error:
            raise self._too_slow(deadline_s) from error
        except OSError as error:
            raise self._unreachable(error.strerror or str(error)) from error
        except Exception as error:
            module = type(error).__module__
            if module.startswith("asyncio"):  # before Python 3.11, asyncio.TimeoutError is a separate class
                raise self._too_slow(deadline_s) from error
            if not module.startswith(_CONNECTION_LIBRARIES):
                raise
            raise self._unreachable((str(error).splitlines() or [""])[0]) from error
        else:
            self._answered = True

    def _refusal(self, model: str, status: str, message: str, deadline_s: float) -> CallError | ClipError:
        text = message.splitlines()[0].removeprefix("[request id: <id_unknown>] ") if message else status
        # After a wrong shape, Triton appends a long note about the batch dimension.
        text = text.split(" NOTE: ")[0].rstrip(".")
        if "in the client while decoding the response" in message or "client received an empty response" in message:
            text = f"HTTP status {status}, not in Triton's words; is there something in between?"
        if "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message or "timed out" in message:
            return self._too_slow(deadline_s)
        # A server that is stopping has unloaded its models. In one whose process stood still, the request was lost.
        if "has no available versions" in text or re.search(_LOST, text):
            return self._unreachable(text)
        if "unknown model" in text or "NOT_FOUND" in status or status == "404":
            return ModelNotFoundError(f"the server at {self._address} has no model {model!r}")
        if re.search(_OTHER_STREAM, text):
            return IncompatibleServerError(
                f"the server at {self._address} serves another model than when this client connected, or a bundle of "
                f"another version of dfer-deploy ({text}); open another client, or serve a bundle of this version"
            )
        if "maximum queue size" in message:
            return QueueFullError(f"the server at {self._address} is full ({text}); send fewer requests at a time")
        # A server that is stopping answers CANCELLED or UNAVAILABLE (HTTP 503); a proxy before it may answer 502.
        if (
            "UNAVAILABLE" in status or "CANCELLED" in status or status in ("502", "503")
        ) and "restricted" not in message:
            return self._unreachable(text)
        if re.search(_REFUSED_IMAGE, text):
            return ClipError(f"the server at {self._address} refused the request to {model!r}: {text}")
        return RequestRefusedError(f"the server at {self._address} refused the request to {model!r}: {text}")

    def _unreachable(self, detail: str) -> CallError:
        if self._answered:
            return ServerUnavailableError(
                f"the server at {self._address} went away during a request ({detail}); "
                "look into its log and start it again"
            )
        other = "http://" if self._address.scheme == "grpc" else "grpc://"
        return ServerUnavailableError(
            f"no Triton server answers at {self._address} ({detail}); start one with: dfer-deploy serve BUNDLE, "
            f"or check the port (ports of the other protocol need {other})"
        )

    def _too_slow(self, deadline_s: float) -> CallError:
        return DeadlineExceededError(
            f"the server at {self._address} did not answer within {deadline_s:.3g} s; "
            "send fewer clips at a time or wait longer"
        )
