"""The choice of what answers ``predict`` and ``stream``: a bundle in this process, or a server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfer_deploy.bundles.bundle import Bundle
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.commands.options import host_code_option
from dfer_deploy.runtimes.available import RUNTIMES, Runtime, open_predictor, usual_runtime
from dfer_deploy.runtimes.predictor import Predictor

if TYPE_CHECKING:
    from dfer_deploy.client import Client

_RETRIES = 1000
"""Practically unlimited: the deadline, not the number of retries, ends the wait for a server."""

_OPTIONS = (
    click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Answer in this process."),
    click.option(
        "--runtime",
        type=click.Choice(RUNTIMES),
        help="Of this process, with --bundle.  [default: TensorRT where its engines run here, else onnxruntime]",
    ),
    host_code_option,
    click.option("--url", help="Ask a server: grpc://HOST:PORT or http://HOST:PORT."),
    click.option("--model", default="dfer", show_default=True, help="The ensemble's name, with --url."),
    click.option(
        "--timeout-s",
        type=float,
        default=60.0,
        show_default=True,
        help="How long one answer may take, with --url; so long a server may be away.",
    ),
)


@dataclass(frozen=True)
class Asked:
    """The user's choice: a bundle, or a server if ``url`` is given.

    Attributes:
        bundle_path: the bundle's folder.
        runtime: runtime in this process; None for the default.
        allow_host_code: let TensorRT execute the code that version-compatible engines carry.
        url: address of the server.
        model: name of the ensemble on the server.
        timeout_s: seconds to wait for one answer of the server.
    """

    bundle_path: Path | None
    runtime: Runtime | None
    allow_host_code: bool
    url: str | None
    model: str
    timeout_s: float

    def __post_init__(self) -> None:
        if (self.bundle_path is None) == (self.url is None):
            raise click.UsageError("give either --bundle BUNDLE or --url URL")
        if self.url and self.runtime:
            raise click.UsageError("--runtime chooses what runs in this process, --url asks a server; choose one")

    def open_client(self) -> Client:
        """Connect to the server. The caller closes the client.

        Raises:
            DferDeployError: no server answers at the address, or it does not have the model.
        """
        from dfer_deploy.client import Client

        assert self.url is not None  # noqa: S101 - callers check it, for mypy
        return Client(self.url, self.model, deadline_s=self.timeout_s, retries=_RETRIES)

    def open_bundle(self, stack: ExitStack) -> tuple[Bundle, Predictor]:
        """Open the bundle and the predictor that runs it until the stack is closed.

        Raises:
            DferDeployError: the folder is not a bundle, or it does not run here.
        """
        assert self.bundle_path is not None  # noqa: S101 - as above
        bundle = open_bundle(self.bundle_path)
        runtime = self.runtime or usual_runtime(bundle, host_code_allowed=self.allow_host_code)
        predictor = open_predictor(runtime, bundle, host_code_allowed=self.allow_host_code)
        return bundle, stack.enter_context(predictor)


def answering_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as ``asked``.

    Raises:
        click.UsageError: the given options contradict each other; raised when the command is called.
    """

    @functools.wraps(command)
    def gathered(*args: Any, **values: Any) -> Any:
        asked = Asked(**{field.name: values.pop(field.name) for field in fields(Asked)})
        return command(*args, asked=asked, **values)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered
