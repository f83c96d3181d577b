"""``dfer-deploy describe`` against a stand-in for an OpenAI-compatible endpoint on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dfer_deploy.errors import TrainingError
from dfer_deploy.train.descriptors import QUESTION, read_descriptors
from dfer_deploy.train.language_model import LanguageModel

KEY = "sk-very-secret"
LIST = "- Smiling mouth\n- Raised cheeks"


class Endpoint(ThreadingHTTPServer):
    """Answers each question with what ``answers`` has for the class: a text, an HTTP status, or raw bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Any] = {}
        self.delay_s = 0.0
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        self.server.keys.append(self.headers["Authorization"])
        time.sleep(self.server.delay_s)
        name = request["messages"][0]["content"].rpartition(" ")[2].rstrip("?")
        answer = self.server.answers.get(name, LIST)
        status, body = 200, b""
        if isinstance(answer, int):
            status, body = answer, json.dumps({"error": {"message": f"no: {KEY}"}}).encode()
        elif isinstance(answer, bytes):
            body = answer
        else:
            message = {"role": "assistant", "content": answer}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            content = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
            body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-should-retry", "false")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_papers_question_is_asked_and_the_file_written(cli: Any, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answers["anger"] = "Anger shows in features such as furrowed eyebrows, and flared nostrils."
    file = tmp_path / "prompts.toml"
    result = cli(
        "describe", "joy", "anger", "-o", file, "--url", endpoint.url, "--model", "m", "--json", tmp_path / "j"
    )
    assert result.exit_code == 0, result.output
    expected = {"joy": "smiling mouth and raised cheeks.", "anger": "furrowed eyebrows and flared nostrils."}
    assert read_descriptors(file) == expected
    assert json.loads((tmp_path / "j").read_text())["descriptors"] == expected
    assert [request["messages"] for request in endpoint.asked] == [
        [{"role": "user", "content": "What are useful visual features for the facial expression of joy?"}],
        [{"role": "user", "content": QUESTION.format(name="anger")}],
    ]
    assert {request["model"] for request in endpoint.asked} == {"m"}
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    for text in (result.output, file.read_text(), (tmp_path / "j").read_text()):
        assert KEY not in text


def test_what_is_in_the_file_is_not_asked_again(cli: Any, endpoint: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "prompts.toml"
    endpoint.answers["fear"] = 500
    assert cli("describe", "joy", "fear", "anger", "-o", file, "--url", endpoint.url).exit_code == 2
    assert list(read_descriptors(file)) == ["joy"]
    endpoint.answers.clear()
    endpoint.asked.clear()
    assert cli("describe", "joy", "fear", "anger", "-o", file, "--url", endpoint.url).exit_code == 0
    assert list(read_descriptors(file)) == ["joy", "fear", "anger"]
    assert len(endpoint.asked) == 2
    endpoint.asked.clear()
    assert cli("describe", "joy", "-o", file, "--url", endpoint.url).exit_code == 0
    assert not endpoint.asked
    assert list(read_descriptors(file)) == ["joy", "fear", "anger"]


@pytest.mark.parametrize("answer", ["", None, "I am sorry."])
def test_an_answer_without_features_leaves_the_others(
    cli: Any, endpoint: Endpoint, tmp_path: Path, answer: str | None
) -> None:
    endpoint.answers["joy"] = answer
    result = cli("describe", "joy", "anger", "-o", tmp_path / "p.toml", "--url", endpoint.url)
    assert result.exit_code == 2
    assert "no descriptor for joy" in result.output
    assert list(read_descriptors(tmp_path / "p.toml")) == ["anger"]


def test_what_does_not_fit_is_said(cli: Any, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answers["joy"] = "\n".join(f"- the cheeks are raised {index} millimetres" for index in range(15))
    result = cli("describe", "joy", "-o", tmp_path / "p.toml", "--url", endpoint.url)
    assert result.exit_code == 0
    assert "joy: CLIP reads no more, left out:" in result.output
    assert "raised 14 millimetres" in result.output
    assert "14 millimetres" not in read_descriptors(tmp_path / "p.toml")["joy"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (401, "HTTP 401; it does not accept the key in OPENAI_API_KEY"),
        (404, "HTTP 404; it knows no such model or address"),
        (429, "HTTP 429; too many requests or no credit"),
        (500, "HTTP 500; try again later"),
        (418, "HTTP 418; check --model and --url"),
        (b"<html>hello</html>", "gave no chat completion"),
        (b"{}", "gave no chat completion"),
    ],
)
def test_errors_are_one_sentence_without_the_key(
    cli: Any, endpoint: Endpoint, tmp_path: Path, answer: Any, message: str
) -> None:
    endpoint.answers["joy"] = answer
    result = cli("describe", "joy", "-o", tmp_path / "p.toml", "--url", endpoint.url)
    assert result.exit_code == 2
    assert message in result.output
    assert KEY not in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_that_is_slow_or_absent_is_named(endpoint: Endpoint) -> None:
    endpoint.delay_s = 0.5
    with pytest.raises(TrainingError, match="did not answer in time"):
        LanguageModel("m", endpoint.url, timeout_s=0.1, retries=0).ask("?")
    with pytest.raises(TrainingError, match="cannot be reached"):
        LanguageModel("m", "http://127.0.0.1:1/v1", retries=0).ask("?")


def test_the_key_comes_from_the_environment_and_is_not_sent_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for url in ("http://example.org/v1", "http://127.0.0.1.example.org/v1"):
        with pytest.raises(TrainingError, match="not encrypted") as caught:
            LanguageModel("m", url)
        assert KEY not in str(caught.value)
    for url in ("ftp://example.org", "example.org", "http://"):
        with pytest.raises(TrainingError, match="expected an address"):
            LanguageModel("m", url)
    LanguageModel("m", "https://example.org/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    LanguageModel("m", "http://example.org/v1")
    with pytest.raises(TrainingError, match="OPENAI_API_KEY is not set"):
        LanguageModel("m")
