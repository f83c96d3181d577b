"""The command line: a table of commands. Each command is imported when it is called, so that --help is fast."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click

from dfer_deploy import __version__
from dfer_deploy.errors import DferDeployError, ExitCode, OutputError, command_line_spelling, missing_package
from dfer_deploy.machine.cgroups import usable_cores

COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("dfer_deploy.commands.inspect:inspect", "Print what a checkpoint is: sizes, classes, prompts."),
    "synthetic": ("dfer_deploy.commands.synthetic:synthetic", "Draw a data set of animated faces to try things on."),
    "train": ("dfer_deploy.commands.train:train", "Train a model by a recipe."),
    "evaluate": ("dfer_deploy.commands.evaluate:evaluate", "Score a checkpoint on labelled clips."),
    "describe": ("dfer_deploy.commands.describe:describe", "Ask a language model for descriptors of expressions."),
    "export": ("dfer_deploy.commands.export:export", "Turn a checkpoint into a bundle: ONNX graphs and a repository."),
    "build": ("dfer_deploy.commands.build:build", "Build a bundle's TensorRT engines on the serving machine."),
    "configure": ("dfer_deploy.commands.configure:configure", "Change how a bundle is served."),
    "migrate": ("dfer_deploy.commands.migrate:migrate", "Write a bundle of an older version in today's format."),
    "serve": ("dfer_deploy.commands.serve:serve", "Serve a bundle with Triton on this machine."),
    "predict": ("dfer_deploy.commands.predict:predict", "Ask a bundle or a server about videos."),
    "stream": ("dfer_deploy.commands.stream:stream", "Watch a camera or a video live."),
    "verify": ("dfer_deploy.commands.verify:verify", "Prove that what is served is what was trained."),
    "report": ("dfer_deploy.commands.report:report", "Show what verify found as one HTML file."),
    "bench": ("dfer_deploy.commands.bench:bench", "Measure throughput and latency with perf_analyzer."),
    "doctor": ("dfer_deploy.commands.doctor:doctor", "Say what this machine can do, and what a bundle needs."),
    "selftest": ("dfer_deploy.commands.selftest:selftest", "Let all runtimes answer alike; try a whole GPU machine."),
    "demo": ("dfer_deploy.commands.demo:demo", "Walk the whole way on drawn faces."),
}

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""

BROKEN_PIPE = 141
"""Exit code after the output pipe was closed: 128 + SIGPIPE, as in shells."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called (click's documentation, "Lazily Loading")."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _printable_refusal():
            for before, word in zip(["", *args], args, strict=False):
                # Python treats an empty path as the current folder.
                if not word or re.fullmatch(r"--[a-z0-9-]+=", word):
                    what = word.rstrip("=") or f"the argument after {before or 'dfer-deploy'}"
                    raise click.UsageError(f"{what} is empty, as an unset shell variable is; give a value or omit it")
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_refusal(), command_line_spelling():
            return self._invoked(ctx)

    def _invoked(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OutputError as error:
            _discard_stdout()
            raise InputError(str(error)) from error
        except DferDeployError as error:
            raise InputError(str(error), error.exit_code) from error
        except ModuleNotFoundError as error:
            raise InputError(str(missing_package(error, "this command"))) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:  # its reader (such as head) closed it; click would exit with 1, "the gate failed"
            _discard_stdout()
            raise SystemExit(BROKEN_PIPE) from None


@contextlib.contextmanager
def _printable_refusal() -> Iterator[None]:
    """Replace control characters of arguments in click's messages, because a terminal would obey them."""
    try:
        yield
    except click.ClickException as error:
        from dfer_deploy.console import printable

        error.message = printable(error.message)  # type: ignore[misc]
        raise


def _discard_stdout() -> None:
    """Discard standard output, which Python would otherwise flush at the end and fail again."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class InputError(click.ClickException):
    """A user's mistake: one sentence, no traceback."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.WRONG_INPUT) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)  # type: ignore[misc]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dfer-deploy")
def group() -> None:
    """A trained DFER-CLIP checkpoint goes in; a verified, measured Triton deployment comes out."""


def _open_closed_streams() -> None:
    """Lead standard streams that are closed (``>&-``) to the null device.

    Otherwise the next file that is opened, such as a checkpoint, would get the number of standard output.
    """
    null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    while null <= 2:
        os.set_inheritable(null, True)
        null = os.open(os.devnull, os.O_RDWR)
    os.close(null)


def main() -> None:
    """Run the command ``dfer-deploy``. A user's mistake ends it with one sentence, a bug with a traceback."""
    _open_closed_streams()
    # PyTorch's idle threads spin by default, which takes the core from other programs. OpenMP reads this setting when
    # torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if usable_cores() < (os.cpu_count() or 1):  # OpenMP does not know a container's quota
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for ≤ and Δ in a terminal that cannot show them
    group.main(prog_name="dfer-deploy")
