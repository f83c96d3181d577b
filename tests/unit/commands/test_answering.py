"""What of the command line reaches who answers; bundle and server are recorded, not opened."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dfer_deploy.commands import answering
from dfer_deploy.commands.answering import Asked, answering_options


def asked(*words: str) -> Asked:
    taken: list[Asked] = []

    @click.command()
    @answering_options
    def command(asked: Asked) -> None:
        taken.append(asked)

    result = CliRunner().invoke(command, words, standalone_mode=False)
    if result.exception:
        raise result.exception
    return taken[0]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was opened, and how."""
    calls: list[Any] = []

    def open_predictor(*arguments: Any, **options: Any) -> Any:
        calls.append((arguments, options))
        return contextlib.nullcontext("predictor")

    monkeypatch.setattr(answering, "open_bundle", lambda path: f"bundle in {path}")
    monkeypatch.setattr(answering, "usual_runtime", lambda bundle, host_code_allowed: f"usual {host_code_allowed}")
    monkeypatch.setattr(answering, "open_predictor", open_predictor)
    monkeypatch.setattr("dfer_deploy.client.Client", lambda *arguments, **options: calls.append((arguments, options)))
    return calls


@pytest.mark.parametrize(
    ("words", "runtime", "allowed"),
    [
        ((), "usual False", False),
        (("--allow-host-code",), "usual True", True),
        (("--runtime", "tensorrt", "--allow-host-code"), "tensorrt", True),
    ],
)
def test_a_bundle_answers_in_the_chosen_runtime(
    opened: list[Any], words: tuple[str, ...], runtime: str, allowed: bool
) -> None:
    with contextlib.ExitStack() as stack:
        assert asked("--bundle", "b", *words).open_bundle(stack) == ("bundle in b", "predictor")
    assert opened == [((runtime, "bundle in b"), {"host_code_allowed": allowed})]


def test_a_server_is_waited_for_until_the_deadline(opened: list[Any]) -> None:
    asked("--url", "h:1").open_client()
    asked("--url", "h:1", "--model", "face", "--timeout-s", "7").open_client()
    assert opened == [
        (("h:1", "dfer"), {"deadline_s": 60.0, "retries": 1000}),
        (("h:1", "face"), {"deadline_s": 7.0, "retries": 1000}),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give either --bundle BUNDLE or --url URL"),
        (("--url", "h:1", "--bundle", "b"), "give either"),
        (("--url", "h:1", "--runtime", "onnxruntime-cpu"), "--runtime chooses what runs in this process"),
    ],
)
def test_contradictions(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        asked(*words)


def test_the_path_of_the_bundle() -> None:
    assert asked("--bundle", "a/b").bundle_path == Path("a/b")
