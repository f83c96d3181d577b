"""Writes ``python.md`` beside it from the docstrings of what is public: ``python docs/python_reference.py``."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Any

import dfer_deploy
from dfer_deploy import DferDeployError, errors
from dfer_deploy.answers.video_windows import VideoWindows
from dfer_deploy.api.bench_bundle import BenchOptions
from dfer_deploy.api.build_engines import BuildResult
from dfer_deploy.api.evaluate_checkpoint import EvaluationResult
from dfer_deploy.api.export_bundle import ExportResult
from dfer_deploy.api.inspect_checkpoint import CheckpointSummary
from dfer_deploy.api.load_bundle import LoadedBundle, LoadedStream
from dfer_deploy.api.migrate_bundle import MigrationResult
from dfer_deploy.client import Answer, AsyncStream, Stream, StreamAnswer, Window
from dfer_deploy.measurement.bench_result import BenchResult, Regression
from dfer_deploy.verification.verification_result import Comparison, ScoredAnswers, VerificationResult

PAGE = Path(__file__).parent / "python.md"

HEAD = """# Python

One Python call does what a command does with checkpoints, bundles and clips. Training, serving, cameras and the report
page have commands only. `dfer_deploy` exports every name that has a heading here, except four classes that only calls
create: `LoadedStream`, `Stream`, `AsyncStream` and `Regression`. These names change only as the
[compatibility policy](compatibility.md) says; all others are internal.

```python
from dfer_deploy import (
    ExportOptions,
    VerifyOptions,
    export_bundle,
    load_bundle,
    verify_bundle,
)

exported = export_bundle("checkpoint.pt", options=ExportOptions(target="embedded"))
options = VerifyOptions(checkpoint="checkpoint.pt", in_process=True)
result = verify_bundle(exported.bundle, "test.txt", options)
with load_bundle(exported.bundle) as model:
    windows = model.predict_video("video.mp4")
    table = windows.to_pandas()
    windows.plot("timeline.png")
```

Complete programs are in the repository's folder `docs/examples`; the tests run each of them.
"""

SECTIONS: dict[str, tuple[Any, ...]] = {
    "Checkpoints and bundles": (
        dfer_deploy.inspect_checkpoint,
        CheckpointSummary,
        dfer_deploy.evaluate_checkpoint,
        EvaluationResult,
        dfer_deploy.export_bundle,
        dfer_deploy.ExportOptions,
        dfer_deploy.ServingOptions,
        ExportResult,
        dfer_deploy.build_engines,
        dfer_deploy.BuildOptions,
        BuildResult,
        dfer_deploy.migrate_bundle,
        MigrationResult,
    ),
    "Answers": (
        dfer_deploy.load_bundle,
        LoadedBundle,
        LoadedStream,
        dfer_deploy.Client,
        Stream,
        dfer_deploy.AsyncClient,
        AsyncStream,
        Answer,
        StreamAnswer,
        VideoWindows,
        Window,
    ),
    "Verification": (
        dfer_deploy.verify_bundle,
        dfer_deploy.VerifyOptions,
        VerificationResult,
        ScoredAnswers,
        Comparison,
    ),
    "Measurement": (dfer_deploy.bench_bundle, BenchOptions, BenchResult, Regression),
    "Errors": tuple(
        error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)
    ),
}


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [HEAD]
    for title, items in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(item) for item in items]
    return "\n".join(parts)


def _entry(item: Any) -> str:
    lines = [f"### {item.__name__}\n"]
    if isinstance(item, type) and issubclass(item, DferDeployError):
        parents = ", ".join(f"`{base.__name__}`" for base in item.__bases__ if base is not Exception)
        lines.append(f"Code `{item.code}`." + (f" A {parents}." if parents else "") + "\n")
    if not isinstance(item, type):
        return "\n".join([*lines, _signature(item.__name__, item), _markdown(item.__doc__)])
    if not issubclass(item, Exception):
        lines.append(_signature(item.__name__, item))
    lines.append(_markdown(item.__doc__))
    for name, member in _members(item).items():
        if isinstance(member, property):
            lines.append(f"**{name}**: {_markdown(member.__doc__)}")
        elif isinstance(member, types.FunctionType | classmethod):
            function = getattr(item, name)
            lines += [f"#### {item.__name__}.{name}\n", _signature(name, function), _markdown(function.__doc__)]
    return "\n".join(lines)


def _members(item: type) -> dict[str, Any]:
    """The public members with a docstring, those of internal base classes included."""
    bases = [base for base in item.__mro__ if base is item or base.__module__.startswith("dfer_deploy")]
    own = [base for base in bases if base is item or base not in (Answer, ScoredAnswers, DferDeployError)]
    members = {name: member for base in reversed(own) for name, member in vars(base).items()}
    return {name: m for name, m in members.items() if not name.startswith("_") and getattr(m, "__doc__", None)}


def _signature(name: str, item: Any) -> str:
    """The call as code; types without the modules they are from."""
    signature = inspect.signature(item)
    shown = [str(parameter) for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
    keywords = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if keywords:
        first = next(place for place, text in enumerate(shown) if text.startswith(f"{keywords[0]}:"))
        shown.insert(first, "*")
    returned = "" if isinstance(item, type) else f" -> {signature.return_annotation}"
    call = f"{name}({', '.join(shown)}){returned}"
    if len(call) > 88:
        call = "\n    ".join([f"{name}(", *(f"{text}," for text in shown)]) + f"\n){returned}"
    call = re.sub(r'"(Literal\[[^"]*\])"', lambda found: found[1].replace("'", '"'), call)
    call = re.sub(r"(?<==) '([^']*)'(?=[,)\n])", r' "\1"', call)
    return f"```python\n{re.sub(r'(?:[a-z_]+[.])+(?=[A-Z])', '', call).replace(chr(39), '')}\n```\n"


def _markdown(docstring: str | None) -> str:
    """Turn a docstring in Google's style into paragraphs and lists."""
    lines, in_list, in_code = [], False, False
    for line in inspect.cleandoc(docstring or "").replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Example):", line):
            lines.append(f"*{line[:-1]}*\n")
            in_list, in_code = line != "Returns:" and line != "Example:", line == "Example:"
            if in_code:
                lines.append("```pycon")
        elif in_code and line:
            lines.append(line.removeprefix("    "))
        elif in_list and re.match(r"    \S", line):
            name, _, text = line.strip().partition(": ")
            lines.append(f"- `{name}`: {text}" if text else f"- {line.strip()}")
        elif in_list and line.startswith("        "):
            lines[-1] += f" {line.strip()}"
        else:
            if in_code:
                lines.append("```")
                in_code = False
            lines.append(line.strip())
    if in_code:
        lines.append("```")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
