"""Ask an OpenAI-compatible endpoint one question. The key comes from the environment and is never printed."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dfer_deploy.errors import TrainingError

if TYPE_CHECKING:
    from openai import OpenAI

KEY = "OPENAI_API_KEY"
"""Name of the environment variable that contains the key."""


class LanguageModel:
    """A client for chat completions. Questions are independent of each other."""

    def __init__(self, model: str, url: str | None = None, *, timeout_s: float = 60.0, retries: int = 2) -> None:
        """Prepare a client, without connecting yet.

        Args:
            model: the endpoint's name of the model.
            url: address of the endpoint, such as ``http://127.0.0.1:8000/v1``; None for OpenAI's own.
            timeout_s: seconds to wait for an answer.
            retries: how often a question is repeated after a timeout, a broken connection, 429 or 5xx.

        Raises:
            DferDeployError: a key is missing and OpenAI's endpoint needs one, or the key would be sent unencrypted.
        """
        from openai import OpenAI

        key = os.environ.get(KEY, "")
        if url is None and not key:
            raise TrainingError(f"{KEY} is not set, expected the key of OpenAI's endpoint; set it, or give --url")
        if url is not None:
            _check_url(url, key)
        self.model, self.where = model, url or "OpenAI's endpoint"
        # The client requires a key; a server that does not need one ignores it.
        self._client: OpenAI = OpenAI(
            base_url=url or "https://api.openai.com/v1", api_key=key or "none", timeout=timeout_s, max_retries=retries
        )

    def ask(self, question: str) -> str:
        """Return the text of the answer, which may be empty.

        Raises:
            DferDeployError: the endpoint refuses, is overloaded, does not answer in time or answers something else.
        """
        import openai

        try:
            completion = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": question}]
            )
        except openai.APITimeoutError as error:
            raise TrainingError(f"{self.where} did not answer in time; try again later") from error
        except openai.APIConnectionError as error:
            raise TrainingError(f"{self.where} cannot be reached; check --url and the network") from error
        except openai.APIStatusError as error:
            # The body is not shown, because some servers repeat the key in it.
            raise TrainingError(f"{self.where} answered with HTTP {error.status_code}; {_advice(error)}") from None
        except (openai.OpenAIError, ValueError) as error:
            raise TrainingError(f"{self.where} gave no chat completion; check --url, it often ends in /v1") from error
        choices = getattr(completion, "choices", None)
        if not choices:
            raise TrainingError(f"{self.where} gave no chat completion; check --url, it often ends in /v1")
        return choices[0].message.content or ""


def _check_url(url: str, key: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host:
        raise TrainingError(f"--url is {url!r}, expected an address such as https://host/v1")
    if key and parts.scheme == "http" and not _is_loopback(host):
        raise TrainingError(
            f"--url {url} is not encrypted and {KEY} would be sent to it; use https, or unset {KEY} for this command"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _advice(error: object) -> str:
    status = getattr(error, "status_code", 0)
    if status in (401, 403):
        return f"it does not accept the key in {KEY}; correct it"
    if status == 404:
        return "it knows no such model or address; check --model and --url"
    if status == 429:
        return "too many requests or no credit; try again later"
    return "try again later" if status >= 500 else "check --model and --url"
