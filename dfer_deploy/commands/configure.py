"""``dfer-deploy configure``"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from dfer_deploy.bundles.bundle import Bundle, ServingOptions
from dfer_deploy.bundles.integrity import open_bundle
from dfer_deploy.commands.options import bundle_argument, json_option
from dfer_deploy.commands.serving_options import option_text, serving_options
from dfer_deploy.console import stdout, table, warn
from dfer_deploy.errors import DferDeployError
from dfer_deploy.files import write_json

_FIELDS = tuple(field.name for field in dataclasses.fields(ServingOptions))
"""Names of the serving options, which are the keys of the command's options."""


@click.command()
@bundle_argument
@serving_options(**dict.fromkeys(_FIELDS, "unchanged"))
@json_option
def configure(bundle: Path, serving: dict[str, Any], json_file: Path | None) -> None:
    """Change how BUNDLE is served: batches, instances, queue, accelerators. Its graphs are left unchanged.

    Only the given options change. Without options, damaged configurations are written again. `bench --propose` measures
    which values are good on this machine.
    """
    from dfer_deploy.export.configure import configure_bundle

    old = open_bundle(bundle, check_files=False).manifest.serving
    new = dataclasses.replace(old, **serving)
    configured, written = configure_bundle(bundle, new)
    rows = [(name, *(option_text(getattr(options, name)) for options in (old, new))) for name in _FIELDS]
    table(str(bundle), ("option", "was", "is"), rows)
    if written:
        stdout.print("a running server keeps the old configuration; restart it to use the new one")
    else:
        stdout.print(f"nothing to change: {bundle} is configured so already", markup=False)
    rebuild = _why_engines_do_not_fit(configured)
    if rebuild:
        warn(rebuild)
    if json_file:
        old_values, new_values = dataclasses.asdict(old), dataclasses.asdict(new)
        write_json(json_file, {"old": old_values, "new": new_values, "written": written, "rebuild": rebuild})


def _why_engines_do_not_fit(bundle: Bundle) -> str | None:
    """Return the reason why the engines must be built again; None if they fit or do not exist."""
    try:
        _ = bundle.engines
    except DferDeployError as error:
        return str(error)
    return None
