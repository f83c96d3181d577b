"""``dfer-deploy inspect``"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from dfer_deploy.api.inspect_checkpoint import CheckpointSummary, inspect_checkpoint
from dfer_deploy.commands.options import class_names_option, json_option, prompt_position_option
from dfer_deploy.console import stdout, table
from dfer_deploy.files import refuse_to_replace_input, write_json
from dfer_deploy.specs import Classifier, PromptPosition, PromptSpec

_CLASSIFIERS: dict[Classifier, str] = {
    "text": "text features of the prompts",
    "image_conditioned_text": "text features of prompts that the clip shifts (Co-CoOp; cannot be exported)",
    "linear": "linear head on the video feature",
}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@prompt_position_option
@class_names_option
@json_option
def inspect(
    checkpoint: Path,
    prompt_position: PromptPosition | None,
    class_names: tuple[str, ...] | None,
    json_file: Path | None,
) -> None:
    """Print what CHECKPOINT is: where it comes from, its sizes, its classes and their prompts.

    Nothing in the file is executed. What a reference checkpoint does not contain (the position of the contexts, the
    names of the classes) is marked as assumed.
    """
    if json_file:
        refuse_to_replace_input(json_file, [checkpoint])
    found = inspect_checkpoint(checkpoint, prompt_position=prompt_position, class_names=class_names)
    rows = _rows(found)
    table(str(checkpoint), ("what", "value"), rows)
    names = "class (names assumed from the texts)" if "class_names" in found.assumed else "class"
    prompts = found.spec.prompts
    if found.spec.classifier == "linear":
        table("classes", ("index", names), list(enumerate(prompts.class_names)))
    else:
        _print_prompts(prompts, names)
    if found.spec.classifier != "image_conditioned_text":
        stdout.print(f"next: dfer-deploy export {shlex.quote(str(checkpoint))}", markup=False)
    if json_file:
        summary = {name.replace(" ", "_"): value for name, value in rows}
        write_json(json_file, {"summary": summary, **found.to_dict()})


def _rows(found: CheckpointSummary) -> list[tuple[str, str]]:
    spec, prompts = found.spec, found.spec.prompts
    vision, text, temporal = spec.clip.vision, spec.clip.text, spec.temporal
    rows = [
        ("format", found.format),
        ("sha256", found.sha256),
        ("parameters", f"{found.parameters / 1e6:.1f} million"),
        (
            "image encoder",
            f"ViT, {_count(vision.layers, 'layer')}, width {vision.width}, {_count(vision.heads, 'head')}, "
            f"patch {vision.patch_size}, image {vision.image_size} × {vision.image_size}",
        ),
        (
            "text encoder",
            f"{_count(text.layers, 'layer')}, width {text.width}, {_count(text.heads, 'head')}, "
            f"{text.context_length} tokens",
        ),
        ("embedding", f"{spec.clip.embed_dim} dimensions"),
        (
            "temporal model",
            f"{_count(temporal.depth, 'layer')}, {_count(temporal.heads, 'head')} of {temporal.head_width}, "
            f"MLP {temporal.mlp_width}"
            if temporal.depth
            else "mean over frames",
        ),
        ("classifier", _CLASSIFIERS[spec.classifier]),
    ]
    if spec.classifier != "linear":
        unsure = " (assumed, not in the file; --prompt-position)" if "prompt_position" in found.assumed else ""
        sets = "one set per class" if prompts.class_specific else "shared by all classes"
        rows += [
            ("contexts", f"{prompts.contexts}, {sets}"),
            ("position", prompts.position + unsure),
            ("temperature", f"{spec.temperature:g}"),
        ]
    stated = "not stated" if found.best_acc is None else f"{found.best_acc:.2f} % WAR on its own test list"
    rows.append(("best_acc", stated))
    rows += [(name, str(value)) for name, value in found.provenance.items()]
    if found.frame_interval_s is None:
        rows.append(("frame interval", "unknown (not in the file; export --frame-interval-s)"))
    return rows


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_prompts(prompts: PromptSpec, names: str) -> None:
    pattern = {"end": "[{m}] {t}", "front": "{t} [{m}]", "middle": "[{a}] {t} [{b}]"}[prompts.position]
    m = prompts.contexts
    table(
        "prompts ([n] stands for n learned contexts)",
        ("index", names, "prompt"),
        [
            (k, name, pattern.format(m=m, a=m // 2, b=m - m // 2, t=class_text) if m else class_text)
            for k, (name, class_text) in enumerate(zip(prompts.class_names, prompts.class_texts, strict=True))
        ],
    )
