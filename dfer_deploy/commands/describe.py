"""``dfer-deploy describe``"""

from __future__ import annotations

from pathlib import Path

import click

from dfer_deploy.commands.options import json_option
from dfer_deploy.console import progress, stdout, table, warn
from dfer_deploy.errors import TrainingError
from dfer_deploy.files import write_json
from dfer_deploy.train.descriptors import (
    QUESTION,
    UnusableAnswerError,
    descriptor_from_features,
    features_from_answer,
    read_descriptors,
    write_descriptors,
)
from dfer_deploy.train.language_model import LanguageModel


@click.command()
@click.argument("classes", nargs=-1, required=True, metavar="CLASS…")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Prompts file.")
@click.option("--model", default="gpt-4o-mini", show_default=True, help="What the endpoint calls the language model.")
@click.option("--url", help="An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.  [default: OpenAI's]")
@click.option("--timeout", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds for an answer.")
@json_option
def describe(
    classes: tuple[str, ...], output: Path, model: str, url: str | None, timeout: float, json_file: Path | None
) -> None:
    """Ask a language model what the expression of each CLASS looks like, and write a prompts file for recipes.

    The question is the paper's. The key is read from the environment variable OPENAI_API_KEY. A class that the file
    describes already is not asked again, so the same command continues an interrupted one.
    """
    for name in classes:
        if not name.strip() or not name.isprintable():
            raise click.UsageError(f"the class {name!r} is empty or not printable")
    found = read_descriptors(output) if output.exists() else {}
    missing = [name for name in dict.fromkeys(classes) if name not in found]
    unusable: list[str] = []
    dropped: dict[str, list[str]] = {}
    if missing:
        language_model = LanguageModel(model, url, timeout_s=timeout)
        for name in progress(missing, "asking", len(missing)):
            try:
                features = features_from_answer(language_model.ask(QUESTION.format(name=name)))
                found[name], dropped[name] = descriptor_from_features(features)
            except UnusableAnswerError as error:
                unusable.append(name)
                warn(f"{name}: {error}")
                continue
            write_descriptors(output, found, model)
            if dropped[name]:
                warn(f"{name}: CLIP reads no more, left out: {'; '.join(dropped[name])}")
    rows = [
        (name, found[name], "asked now" if name in missing else "kept")
        for name in dict.fromkeys(classes)
        if name in found
    ]
    table(str(output), ("class", "descriptor", ""), rows)
    stdout.print("next: read them, then in a recipe:")
    stdout.print(f'  [model]\n  prompts_file = "{output}"', markup=False)
    if json_file:
        write_json(json_file, {"model": model, "descriptors": {name: found[name] for name, _, _ in rows}})
    if unusable:
        raise TrainingError(f"no descriptor for {', '.join(unusable)}; ask again, or write it into {output} by hand")
